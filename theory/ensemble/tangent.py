"""The empirical neural tangent kernel of a stack, from products of layers instead of Jacobians."""

from __future__ import annotations

import torch
from torch import Tensor

from theory.ensemble.mlp import StackedMLP


def empirical_ntk(mlp: StackedMLP, x: Tensor, *, layer_rates: Tensor | None = None, full: bool = False) -> Tensor:
    """Return Θ(x_i, x_j) = Σ_l ρ_l <∂f/∂θ^l(x_i), ∂f/∂θ^l(x_j)> of every member, over its trainable layers.

    θ^l are the weights w^l and, where the stack has them, the biases b^l. Averaged over outputs, [K, P, P], or with
    `full` for every pair of outputs, [K, P, d_o, P, d_o]. ρ_l are the entries of `layer_rates` [L+1, K], ones by
    default: with the relative learning rates of the layers, one step of gradient descent with rate η on a batch moves f
    by -(η/B) Θ χ to first order.

    With s_l = m_l ∂f/∂h^l the derivatives are s_l x^{l-1}^T and s_l, so each layer's part is the product of the Gram
    matrices of s_l and of x^{l-1}, the latter plus 1 with a bias, which is an input that is always 1. Source: Jacot,
    Gabriel & Hongler 2018, arXiv:1806.07572; layerwise form derived here.
    """
    states = mlp.states(x)
    x = x.expand(mlp.members, -1, -1) if x.dim() == 2 else x
    K, P, d_o = states.f.shape
    kernel = x.new_zeros((K, P * d_o, P * d_o) if full else (K, P, P))
    s = torch.eye(d_o, dtype=x.dtype, device=x.device).expand(K, P, d_o, d_o)  # ∂f_k/∂h^{L+1}
    for index in range(mlp.L, -1, -1):
        s = s * mlp.multipliers[index].view(K, 1, 1, 1)
        if index + 1 in mlp.trainable:
            below = states.x[index - 1] if index > 0 else x
            gram = torch.bmm(below, below.mT)  # [K, P, P]
            if mlp.biases is not None:
                gram.add_(1.0)
            if layer_rates is not None:
                gram.mul_(layer_rates[index].view(K, 1, 1))
            if full:
                rows = s.reshape(K, P * d_o, -1)
                gram = gram.repeat_interleave(d_o, 1).repeat_interleave(d_o, 2)
            else:
                rows = s.reshape(K, P, -1)
                gram.div_(d_o)
            kernel.addcmul_(torch.bmm(rows, rows.mT), gram)
        if index >= mlp.trainable[0]:
            s = torch.bmm(s.reshape(K, P * d_o, -1), mlp.weights[index]).view(K, P, d_o, -1)
            s = mlp.activation.pull(s, states.h[index - 1].unsqueeze(2), states.x[index - 1].unsqueeze(2))
    return kernel.view(K, P, d_o, P, d_o) if full else kernel
