"""Curvature of stacked multilayer perceptrons in closed form: batched matrix products, no autograd.

Everything is seen from perturbations u^i added to a^i = w^i x^i + b^i, the layers i counted from zero. One example's
loss has first derivatives s^i = ∂ℓ/∂u^i and second derivatives C^{ji} = ∂²ℓ/∂u^j∂u^i, matrices no larger than the layers;
the parameters enter as u^i = dw^i x^i + db^i. With x̃ = (x, 1) for the bias, the block of layers j < i of the Hessian is

    H[(j p b), (i k a)] = Σ_n x̃^j[b] (C^{ji}[p,k] x̃^i[a] + s^i[k] ∂x^i[a]/∂u^j[p])

summed over examples n, and for j = i it has the first term only: one matrix product over the examples per block. The
other parts of the Hessian have other C, and G and the empirical Fisher lack the second term. Products with vectors
differentiate the backward pass by hand (Pearlmutter 1994, "Fast exact multiplication by the Hessian").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from theory.curvature.base import (
    ROOTED,
    Curvature,
    check_like,
    check_loss,
    check_part,
    check_precision,
    check_probabilities,
    check_row_vectors,
    check_vectors,
    mean_loss,
    output_hessian,
    output_residual,
    output_root,
)
from theory.curvature.blocks import Layer, accumulate, lower_triangle, place, place_diagonal, triangle_of_squares
from theory.ensemble.mlp import StackedMLP

# Numbers in the largest temporary, so that memory stays bounded and near the caches.
CHUNK_MATRIX = 2**20
CHUNK_PRODUCT = 2**17
CHUNK_VECTORS = 32  # vectors taken through the network together


class MLPCurvature(Curvature):
    """Curvature of the mean loss of a `StackedMLP` with all its layers trainable, in closed form.

    x is [N, d] or [K, N, d], y [N, d_o] or [K, N, d_o] in the dtype of the weights; loss is "xent" (rows of y are
    probabilities) or "mse" (½ sum of squares), each a mean over examples. Biases and multipliers count. The object is a
    snapshot: training the stack afterwards changes nothing here.

    Ranks: for xent A_i has rank d_o − 1, so rank(G) ≤ min(M, N (d_o − 1)), and as a shift of all logits changes nothing
    while the last layer can make one, rank(G) ≤ M − (h + 1) for h units (and a bias) below it; for mse
    rank(G) ≤ min(M, N d_o); rank of the empirical Fisher ≤ min(M, N).

    Raises ValueError for float32 weights unless precision="float32" (see `base.check_precision`), frozen layers, an
    unknown loss, no data, data that do not fit the stack or whose dtype differs, and targets that are no probabilities.
    """

    def __init__(self, mlp: StackedMLP, x: Tensor, y: Tensor, loss: str, *, precision: str = "float64") -> None:
        check_loss(loss)
        check_precision(mlp.weights[0].dtype, precision)
        if len(mlp.trainable) != mlp.L + 1:
            raise ValueError(f"curvature needs all layers trainable, layers {mlp.trainable} of 1..{mlp.L + 1} are")
        check_like("x", x, mlp.weights[0])
        check_like("y", y, mlp.weights[0])
        K, d, d_o = mlp.members, mlp.sizes[0], mlp.sizes[-1]
        N = x.shape[-2] if x.dim() in (2, 3) else 0
        _check_shape("x", x, (K, N, d), "d")
        _check_shape("y", y, (K, N, d_o), "d_o")
        if N == 0:
            raise ValueError("no examples: x is empty")
        if loss == "xent":
            check_probabilities(y)
        self.loss_name, self._activation = loss, mlp.activation
        self.members, self.examples, self.outputs = K, N, d_o
        self.dtype, self.device = x.dtype, x.device
        self._x, self._y = x.expand(K, -1, -1), y.expand(K, -1, -1)
        biases: Sequence[Tensor | None] = mlp.biases or [None] * len(mlp.weights)
        flat = [t.reshape(K, -1) for w, b in zip(mlp.weights, biases, strict=True) for t in (w, b) if t is not None]
        self.theta = torch.cat(flat, 1)
        self.parameters = self.theta.shape[1]
        self._layers, self._s, self._bend = self._snapshot(mlp)

    def _snapshot(self, mlp: StackedMLP) -> tuple[list[Layer], list[Tensor], list[Tensor]]:
        """Return the layers, s = ∂L/∂a of each, and q = (w_aboveᵀ s_above) ∂²x'/∂a² of each hidden one, [K, N, n]."""
        states, act = mlp.states(self._x), mlp.activation
        self._f = states.f.contiguous()
        self._p = torch.softmax(self._f, -1)
        layers: list[Layer] = []
        for i, w in enumerate(mlp.weights):
            m = mlp.multipliers[i].view(-1, 1, 1)
            b = None if mlp.biases is None else mlp.biases[i].clone()
            x = (states.x[i - 1] if i else self._x).contiguous()
            x1 = x if b is None else torch.cat([x, x.new_ones(()).expand(*x.shape[:2], 1)], 2)
            slope = m
            if i < mlp.L:
                slope = act.pull(m.expand_as(states.h[i]).clone(), states.h[i], states.x[i])
            layers.append(Layer(w.clone(), b, m, x, x1, slope, layers[-1].all.stop if layers else 0))
        s, bend = [output_residual(self.loss_name, self._f, self._y) * (layers[-1].m / self.examples)], []
        for i in range(mlp.L - 1, -1, -1):
            back = torch.bmm(s[-1], layers[i + 1].w)
            s.append(back * layers[i].slope)
            bend.append(act.pull_second(back.mul_(layers[i].m.square()), states.h[i], states.x[i]))
        return layers, s[::-1], bend[::-1]

    def f(self) -> Tensor:
        """Return the outputs (logits for xent), [K, N, d_o]."""
        return self._f.clone()

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """Return the mean loss [K] at theta [K, M], by default at the networks' own parameters."""
        if theta is None:
            return mean_loss(self.loss_name, self._f, self._y)
        if theta.shape != self.theta.shape:
            raise ValueError(f"theta must be [K, M] = {list(self.theta.shape)}, got {list(theta.shape)}")
        check_like("theta", theta, self.theta)
        x = self._x
        for layer in self._layers:
            x = torch.bmm(x, theta[:, layer.weights].reshape(layer.w.shape).mT)
            if layer.b is not None:
                x.add_(theta[:, layer.biases].unsqueeze(1))
            x.mul_(layer.m)
            if layer is not self._layers[-1]:
                x = self._activation(x)
        return mean_loss(self.loss_name, x, self._y)

    def gradient(self) -> Tensor:
        """Return ∇L, [K, M]."""
        out = torch.empty_like(self.theta)
        for layer, s in zip(self._layers, self._s, strict=True):
            out[:, layer.weights] = torch.bmm(s.mT, layer.x).flatten(1)
            out[:, layer.biases] = s.sum(1)[:, : layer.biases.stop - layer.biases.start]
        return out

    # ------------------------------------------------------------------------------------------ products with vectors

    def product(self, v: Tensor, part: str = "hessian") -> Tensor:
        """Return part @ v for V vectors at once, [K, M, V] -> [K, M, V]."""
        check_part(part)
        check_vectors(v, self.theta)
        out = torch.empty_like(v)
        for first in range(0, v.shape[2], CHUNK_VECTORS):
            some = slice(first, first + CHUNK_VECTORS)
            tangent = v[:, :, some].mT.contiguous()  # [K, V, M]
            made = self._fisher_product(tangent) if part == "fisher" else self._tangent_product(tangent, part)
            out[:, :, some] = made.mT
        return out

    def _tangent_product(self, v: Tensor, part: str) -> Tensor:
        """Differentiate the backward pass along v, [K, V, M]; tangents of a and x are [K, c, V, n] for c examples."""
        K, V, _ = v.shape
        layers, top = self._layers, len(self._layers) - 1
        second = part != "ggn"  # G is what remains when the factors of the backward pass are held fixed
        along = [v[:, :, layer.weights].view(K, V, layer.n, layer.below) for layer in layers]
        forth = [dw.reshape(K, -1, dw.shape[3]).mT for dw in along]  # [K, n', V n]
        aside = [dw.transpose(1, 2).reshape(K, dw.shape[2], -1) for dw in along[1:]]  # [K, n, V n']
        on_w = [torch.zeros_like(w) for w in along]
        cross = [torch.zeros_like(w) for w in aside]
        out = torch.zeros_like(v)
        for some in self._slices(K * V * max(layer.n for layer in layers), CHUNK_PRODUCT):
            da: list[Tensor] = []
            dx: list[Tensor] = []
            for i, layer in enumerate(layers):
                d = torch.bmm(layer.x[:, some], forth[i])
                c = d.shape[1]
                if dx:
                    d.view(K, c * V, -1).baddbmm_(dx[-1].view(K, c * V, -1), layer.w.mT)
                da.append(d.view(K, c, V, -1))
                if layer.b is not None:
                    da[-1].add_(v[:, :, layer.biases].unsqueeze(1))
                if i < top:
                    dx.append(da[-1] * layer.slope[:, some].unsqueeze(2))
            ds = self._through_loss(da[-1], some, part)
            for i in range(top, -1, -1):
                layer, s = layers[i], self._s[i][:, some]
                on_w[i].view(K, V * layer.n, -1).baddbmm_(ds.view(K, c, -1).mT, layer.x[:, some])
                if layer.b is not None:
                    out[:, :, layer.biases] += ds.sum(1)
                if i == 0:
                    break
                back = torch.bmm(ds.view(K, c * V, -1), layer.w).view(K, c, V, -1)
                if second:
                    cross[i - 1].baddbmm_(s.mT, dx[i - 1].view(K, c, -1))
                    back.view(K, c, -1).baddbmm_(s, aside[i - 1])
                ds = back.mul_(layers[i - 1].slope[:, some].unsqueeze(2))
                if second:
                    ds.addcmul_(da[i - 1], self._bend[i - 1][:, some].unsqueeze(2))
        for i, layer in enumerate(layers):
            if second and i:
                on_w[i] += cross[i - 1].view(K, layer.n, V, -1).transpose(1, 2)
            out[:, :, layer.weights] = on_w[i].flatten(2)
        return out

    def _slices(self, width: int, budget: int) -> list[slice]:
        """Return slices of the examples such that temporaries of `width` numbers per example fit the budget."""
        size = max(1, budget // width)
        return [slice(first, min(first + size, self.examples)) for first in range(0, self.examples, size)]

    def _through_loss(self, da: Tensor, some: slice, part: str) -> Tensor:
        """Return the tangent of s at the top, (m²/N) A da, [K, c, V, d_o]; zero for the residual."""
        if part == "residual":
            return torch.zeros_like(da)
        scale = (self._layers[-1].m.square() / self.examples).unsqueeze(3)
        if self.loss_name == "mse":
            return da * scale
        p = self._p[:, some].unsqueeze(2)
        weighted = p * da
        return weighted.sub_(p * weighted.sum(-1, keepdim=True)).mul_(scale)

    def _fisher_product(self, v: Tensor) -> Tensor:
        """Return (1/N) Σ g (g·v) for v [K, V, M]; with s = the derivative of the mean loss, g_n = N s_n x_nᵀ."""
        K, V, _ = v.shape
        along = v.new_zeros(K, self.examples, V)  # s-weighted tangents: (1/N) g_n·v
        for layer, s in zip(self._layers, self._s, strict=True):
            dw = v[:, :, layer.weights].reshape(K, V * layer.n, layer.below)
            d = torch.bmm(layer.x, dw.mT).view(K, self.examples, V, layer.n)
            if layer.b is not None:
                d.add_(v[:, :, layer.biases].unsqueeze(1))
            along += torch.matmul(d, s.unsqueeze(3)).squeeze(3)
        out = torch.empty_like(v)
        along.mul_(self.examples)
        for layer, s in zip(self._layers, self._s, strict=True):
            weighted = along.unsqueeze(3) * s.unsqueeze(2)  # [K, N, V, n]
            out[:, :, layer.weights] = torch.bmm(weighted.flatten(2).mT, layer.x).view(K, V, -1)
            if layer.b is not None:
                out[:, :, layer.biases] = weighted.sum(1)
        return out

    # ------------------------------------------------------------------------------------------------ whole matrices

    def matrix(self, part: str = "hessian") -> Tensor:
        """Return the part as an exactly symmetric matrix, [K, M, M]; needs memory for about two of them."""
        check_part(part)
        layers, bent = self._layers, part in ("hessian", "residual")
        pairs = [(j, i) for i in range(len(layers)) for j in range(i + 1)]
        sums: dict[tuple[int, int], Tensor] = {}
        cross: dict[int, Tensor] = {}
        for some in self._slices(self._widest_factor(bent), CHUNK_MATRIX):
            C, reach = self._second_derivatives(some, part)
            for j, i in pairs:
                xj, xi = layers[j].x1[:, some], layers[i].x1[:, some]  # x̃
                if i == j:
                    # C and x̃ x̃ᵀ are both symmetric: a quarter of the work
                    accumulate(sums, (j, i), lower_triangle(C[j, i]).mT, triangle_of_squares(xj))
                elif bent and i > j + 1:
                    left = C[j, i].unsqueeze(4) * xi[:, :, None, None]  # [K, c, p, k, a]
                    s = self._s[i][:, some]
                    left[..., : layers[i].below].addcmul_(s[:, :, None, :, None], reach[j, i].unsqueeze(3))
                    accumulate(sums, (j, i), xj.mT, left.flatten(2))  # [K, b, p k a]
                else:
                    inputs = xj.unsqueeze(3) * xi.unsqueeze(2)  # [K, c, b, a]
                    accumulate(sums, (j, i), C[j, i].flatten(2).mT, inputs.flatten(2))  # [K, p k, b a]
                    if bent:  # ∂x^i[a]/∂u^j[p] is diagonal
                        s = self._s[i][:, some].unsqueeze(3) * layers[j].slope[:, some].unsqueeze(2)
                        accumulate(cross, j, s.flatten(2).mT, xj)  # [K, k p, b]
        out = self.theta.new_empty(self.members, self.parameters, self.parameters)
        for j, i in pairs:
            total, lower, upper = sums.pop((j, i)), layers[j], layers[i]
            if i == j:
                place_diagonal(out, lower, total)
                continue
            K, p, k, b, a = self.members, lower.n, upper.n, lower.inputs, upper.inputs
            if bent and i > j + 1:
                block = total.view(K, b, p, k, a).permute(0, 2, 1, 3, 4)
            else:
                block = total.view(K, p, k, b, a).transpose(2, 3)
                if bent:
                    diagonal = block[..., : upper.below].diagonal(dim1=1, dim2=4)  # [K, b, k, p = a]
                    diagonal += cross.pop(j).view(K, k, p, b).permute(0, 3, 1, 2)
            place(out, lower, upper, block, 0, 0)
            place(out, upper, lower, block.permute(0, 3, 4, 1, 2), 0, 0)
        return out

    def _widest_factor(self, bent: bool) -> int:
        """Return how many numbers per example the largest temporary of `matrix` has."""
        layers, widest = self._layers, 1
        for i, upper in enumerate(layers):
            for j, lower in enumerate(layers[: i + 1]):
                far = bent and i > j + 1
                inputs = upper.inputs * (upper.n * lower.n if far else lower.inputs)
                widest = max(widest, upper.n * lower.n, inputs)
        return self.members * widest

    def _second_derivatives(
        self, some: slice, part: str
    ) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], Tensor]]:
        """Return C^{ji} = ∂²L/∂u^j∂u^i, [K, c, n_j, n_i], and, for j < i-1, ∂x_i/∂u^j, [K, c, n_j, n'_i], for j ≤ i.

        With T = ∂a^{j+1}/∂u^j = w^{j+1} D^j, C^{ji} = Tᵀ C^{j+1,i}, to which for j = i the bend of the activation adds.
        """
        layers, top = self._layers, len(self._layers) - 1
        C: dict[tuple[int, int], Tensor] = {}
        reach: dict[tuple[int, int], Tensor] = {}
        if part == "fisher":
            for i in range(top + 1):
                for j in range(i + 1):
                    s = self._s[j][:, some] * self.examples
                    C[j, i] = s.unsqueeze(3) * self._s[i][:, some].unsqueeze(2)
            return C, reach
        A = output_hessian(self.loss_name, self._f[:, some])
        C[top, top] = A * (layers[-1].m.square() / self.examples).unsqueeze(3) * (part != "residual")
        for j in range(top - 1, -1, -1):
            Tt = (layers[j + 1].w.unsqueeze(1) * layers[j].slope[:, some].unsqueeze(2)).mT  # [K, c, n_j, n_{j+1}]
            for i in range(j + 1, top + 1):
                C[j, i] = torch.matmul(Tt, C[j + 1, i])
                if i == j + 2:
                    reach[j, i] = Tt * layers[j + 1].slope[:, some].unsqueeze(2)
                elif i > j + 2:
                    reach[j, i] = torch.matmul(Tt, reach[j + 1, i])
            C[j, j] = torch.matmul(C[j, j + 1], Tt.mT)
            if part != "ggn":
                C[j, j].diagonal(dim1=2, dim2=3).add_(self._bend[j][:, some])
        return C, reach

    # --------------------------------------------------------------------------------------------------- square roots

    def rows(self, part: str = "ggn") -> Tensor:
        """Return B, [K, R, M], with BᵀB = part; see `Curvature.rows`."""
        signals = self._root_signals(part)
        K, N, c = signals[0].shape[:3]
        out = self.theta.new_empty(K, N, c, self.parameters)
        for layer, s in zip(self._layers, signals, strict=True):
            on_w = out[..., layer.weights].unflatten(3, (layer.n, layer.below))
            torch.mul(s.unsqueeze(4), layer.x[:, :, None, None], out=on_w)
            if layer.b is not None:
                out[..., layer.biases] = s
        return out.view(K, N * c, self.parameters)

    def adjoint(self, q: Tensor, part: str = "ggn") -> Tensor:
        """Return Bᵀq for V vectors in row space, [K, R, V] -> [K, M, V], without forming B."""
        signals = self._root_signals(part)
        K, N, c = signals[0].shape[:3]
        check_row_vectors(q, N * c, self.theta)
        V = q.shape[2]
        weights = q.view(K * N, c, V).mT
        out = self.theta.new_empty(K, V, self.parameters)
        for layer, s in zip(self._layers, signals, strict=True):
            along = torch.bmm(weights, s.reshape(K * N, c, -1)).view(K, N, -1)  # Σ_a q_ia s_ia, [K, N, V n]
            out[:, :, layer.weights] = torch.bmm(along.mT, layer.x).view(K, V, -1)
            if layer.b is not None:
                out[:, :, layer.biases] = along.sum(1).view(K, V, -1)
        return out.mT

    def gram(self, part: str = "ggn") -> Tensor:
        """Return B Bᵀ, [K, R, R], layer by layer: (products of signals) ∘ (products of inputs, plus 1 for a bias)."""
        signals = self._root_signals(part)
        K, N, c = signals[0].shape[:3]
        out = self.theta.new_zeros(K, N * c, N * c)
        for layer, s in zip(self._layers, signals, strict=True):
            rows = s.flatten(1, 2)
            inputs = torch.bmm(layer.x1, layer.x1.mT).view(K, N, 1, N, 1)
            out.view(K, N, c, N, c).addcmul_(torch.bmm(rows, rows.mT).view(K, N, c, N, c), inputs)
        return out

    def _root_signals(self, part: str) -> list[Tensor]:
        """Return per layer ∂/∂a of what the rows are gradients of, [K, N, rows per example, n]."""
        check_part(part, ROOTED)
        if part == "fisher":
            return [s.unsqueeze(2) * self.examples**0.5 for s in self._s]
        scale = self._layers[-1].m.unsqueeze(3) / self.examples**0.5
        signals = [output_root(self.loss_name, self._f).mT * scale]
        K, N, c = signals[0].shape[:3]
        for layer, above in reversed(list(pairwise(self._layers))):
            s = torch.bmm(signals[-1].reshape(K, N * c, -1), above.w).view(K, N, c, -1)
            signals.append(s.mul_(layer.slope.unsqueeze(2)))
        return signals[::-1]


def _check_shape(what: str, tensor: Tensor, shape: tuple[int, int, int], last: str) -> None:
    """Raise ValueError unless the shape is `shape` = (K, N, last) or that without K."""
    if tuple(tensor.shape) not in (shape, shape[1:]):
        K, N, size = shape
        raise ValueError(
            f"{what} must be [N, {last}] or [K, N, {last}] with K = {K}, N = {N}, {last} = {size}, got {list(tensor.shape)}"
        )
