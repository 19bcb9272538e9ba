"""Infinite-width kernels of the neural tangent parametrization, and gradient descent with a fixed kernel.

Networks have no biases. With Σ^1 = Θ^1 = <ξ, ζ>, every hidden layer maps Σ' = E φ(u)φ(v), Σ̇ = E φ'(u)φ'(v)
for (u, v) ~ N(0, the 2x2 block of Σ), and Θ' = Σ' + Θ∘Σ̇. After L layers Σ is the covariance of f_0 (NNGP)
and Θ the neural tangent kernel of f = W^{L+1} x^L. Inputs are not divided by √d. Sources: Jacot, Gabriel &
Hongler, arXiv:1806.07572, Theorem 1; closed forms of relu: Cho & Saul, Kernel Methods for Deep Learning,
Section 2; of erf: Williams, Computing with Infinite Networks, Section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf, roots_hermitenorm

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

# Largest change that doubling the quadrature may still make, relative to the largest moment. What is left
# after it is far smaller: the Hermite coefficients of a function with poles at ±i p fall like exp(-p √k).
CONVERGENCE = 1e-8
FIRST_NODES, LAST_NODES = 64, 2048


def _normal_cdf(z: Array) -> Array:
    return 0.5 * (1.0 + erf(z / math.sqrt(2.0)))


def _normal_density(z: Array) -> Array:
    return np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


# φ and φ' of the activations that have no closed form here.
_SMOOTH: dict[str, tuple[Function, Function]] = {
    "tanh": (np.tanh, lambda z: 1.0 - np.tanh(z) ** 2),
    "gelu": (lambda z: z * _normal_cdf(z), lambda z: _normal_cdf(z) + z * _normal_density(z)),
}
ACTIVATIONS = ("relu", "erf", *_SMOOTH)


def nngp_ntk(x1: ArrayLike, x2: ArrayLike, depth: int, activation: str) -> tuple[Array, Array]:
    """Return the NNGP kernel and the neural tangent kernel (P, Q) between the rows of x1 (P, d) and x2 (Q, d).

    `depth` is the number of hidden layers L, `activation` one of "relu", "erf", "tanh", "gelu" (the exact
    one, z Φ(z)). relu and erf are exact to rounding, also on and next to the diagonal; tanh and gelu to
    `CONVERGENCE` or better. Raises ValueError for arrays that are not two matrices of the same d, for depth <
    1, an unknown activation, or a quadrature that has not converged.
    """
    x1, x2 = np.asarray(x1, dtype=np.float64), np.asarray(x2, dtype=np.float64)
    if x1.ndim != 2 or x2.ndim != 2 or x1.shape[1] != x2.shape[1]:
        raise ValueError(f"x1 and x2 must be (P, d) and (Q, d), got shapes {x1.shape} and {x2.shape}")
    if depth < 1:
        raise ValueError(f"depth = {depth}: a network needs at least one hidden layer")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
    if activation == "relu":
        return _relu_kernels(x1, x2, depth)
    layer = _erf_layer if activation == "erf" else _quadrature_layer(*_SMOOTH[activation])
    return _layered_kernels(x1, x2, depth, layer)


# One hidden layer: variances q1 (P,), q2 (Q,) and covariances s (P, Q) -> new q1, q2, Σ' (P, Q), Σ̇ (P, Q).
Layer = Callable[[Array, Array, Array], tuple[Array, Array, Array, Array]]


def _layered_kernels(x1: Array, x2: Array, depth: int, layer: Layer) -> tuple[Array, Array]:
    """Apply `layer` depth times; the diagonals travel along because x1 and x2 may differ."""
    q1, q2 = np.einsum("pd,pd->p", x1, x1), np.einsum("qd,qd->q", x2, x2)
    sigma = x1 @ x2.T
    theta = sigma
    for _ in range(depth):
        q1, q2, sigma, derivative = layer(q1, q2, sigma)
        theta = sigma + theta * derivative
    return sigma, theta


def _relu_kernels(x1: Array, x2: Array, depth: int) -> tuple[Array, Array]:
    """relu, with the angle between two inputs instead of their covariance as the state.

    arccos loses half the digits near 1: an angle recovered from the covariance of two equal inputs is 1e-8,
    not 0. The angle itself obeys 1 - cos a' = 2 sin²(a/2) - (sin a - a cos a)/π, which keeps its digits.
    """
    norm1, norm2 = np.linalg.norm(x1, axis=1), np.linalg.norm(x2, axis=1)
    # An input of length zero has Σ = 0 whatever its angle.
    u1 = x1 / np.where(norm1 > 0, norm1, 1.0)[:, None]
    u2 = x2 / np.where(norm2 > 0, norm2, 1.0)[:, None]
    # Row by row: (P, Q, d) at once would not fit for a whole data set.
    tangents = [np.arctan2(np.linalg.norm(u - u2, axis=1), np.linalg.norm(u + u2, axis=1)) for u in u1]
    angle = 2.0 * np.reshape(tangents, (len(u1), len(u2)))  # (P, Q)
    scale = norm1[:, None] * norm2[None]  # √(q1 q2), halved by every layer
    theta = scale * np.cos(angle)
    sigma = theta
    for _ in range(depth):
        derivative = (math.pi - angle) / (2.0 * math.pi)
        scale = scale / 2.0
        versine = 2.0 * np.sin(angle / 2.0) ** 2 - (np.sin(angle) - angle * np.cos(angle)) / math.pi
        angle = 2.0 * np.arcsin(np.sqrt(np.clip(versine / 2.0, 0.0, 1.0)))
        sigma = scale * (1.0 - versine)
        theta = sigma + theta * derivative
    return sigma, theta


def _erf_layer(q1: Array, q2: Array, sigma: Array) -> tuple[Array, Array, Array, Array]:
    size = (1.0 + 2.0 * q1)[:, None] * (1.0 + 2.0 * q2)[None]
    new = 2.0 / math.pi * np.arcsin(2.0 * sigma / np.sqrt(size))
    derivative = 4.0 / math.pi / np.sqrt(size - 4.0 * sigma**2)
    new_q1, new_q2 = (2.0 / math.pi * np.arcsin(2.0 * q / (1.0 + 2.0 * q)) for q in (q1, q2))
    return new_q1, new_q2, new, derivative


def _quadrature_layer(phi: Function, dphi: Function) -> Layer:
    """Return the layer of any smooth φ, by Gauss-Hermite quadrature and Mehler's series.

    With φ(√q g) = Σ_k c_k(q) he_k(g) in normalised Hermite polynomials, E φ(u)φ(v) = Σ_k c_k(q1) c_k(q2) ρ^k,
    and the same for φ'. The c_k come from one-dimensional quadrature per variance, so that a pair costs K
    products instead of K² function values. The number of nodes doubles until the moments stop changing;
    ValueError if they have not by `LAST_NODES`.
    """

    def layer(q1: Array, q2: Array, sigma: Array) -> tuple[Array, Array, Array, Array]:
        size = np.sqrt(q1[:, None] * q2[None])
        rho = np.divide(sigma, size, out=np.zeros_like(sigma), where=size > 0)
        rho = np.clip(rho, -1.0, 1.0)
        previous: tuple[Array, ...] | None = None
        nodes = FIRST_NODES
        while nodes <= LAST_NODES:
            coefficients = [(_hermite(f, q1, nodes), _hermite(f, q2, nodes)) for f in (phi, dphi)]
            diagonals = [np.sum(c * c, axis=1) for c in coefficients[0]]
            now = (*diagonals, *(_mehler(c1, c2, rho) for c1, c2 in coefficients))
            if previous is not None and _change(previous, now) <= CONVERGENCE:
                return now[0], now[1], now[2], now[3]
            previous, nodes = now, 2 * nodes
        largest = max(q1.max(initial=0.0), q2.max(initial=0.0))
        raise ValueError(
            f"quadrature with {LAST_NODES} nodes has not converged for pre-activation variances up to {largest:.3g}: "
            "scale the inputs down"
        )

    return layer


def _change(old: tuple[Array, ...], new: tuple[Array, ...]) -> float:
    """Largest difference between two sets of moments, each relative to its largest entry."""
    changes = []
    for before, after in zip(old, new, strict=True):
        size = np.abs(after).max(initial=0.0)
        changes.append(np.abs(after - before).max(initial=0.0) / size if size > 0 else 0.0)
    return max(changes)


@cache
def _hermite_functions(nodes: int) -> tuple[Array, Array, Array]:
    """Gauss-Hermite nodes g (m,), roots of the weights (m,; they sum to one), and root · he_k(g) for k < m/2 (K, m)."""
    g, weights = roots_hermitenorm(nodes)
    root = np.sqrt(weights / weights.sum())
    # The root of the weight rides along in the recursion: he_k alone overflows at the outermost nodes. Where
    # that root underflows (|g| > 54) the products are lost, but there the second root, met later, is zero too.
    rows = [root, g * root]
    for k in range(1, nodes // 2 - 1):
        rows.append((g * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return g, root, np.stack(rows)


def _hermite(function: Function, q: Array, nodes: int) -> Array:
    """Coefficients c_k(q) = E function(√q g) he_k(g) for each variance in q (P,): (P, K)."""
    g, root, functions = _hermite_functions(nodes)
    return (function(np.sqrt(q)[:, None] * g[None]) * root) @ functions.T


def _mehler(c1: Array, c2: Array, rho: Array) -> Array:
    """Σ_k c1_k c2_k ρ^k for all pairs, by Horner's rule: c1 (P, K), c2 (Q, K), rho (P, Q) -> (P, Q)."""
    total = np.zeros_like(rho)
    for k in range(c1.shape[1] - 1, -1, -1):
        total = total * rho + c1[:, k, None] * c2[None, :, k]
    return total


def kernel_gradient_descent(
    kernel: ArrayLike, f0: ArrayLike, targets: ArrayLike, batches: ArrayLike, eta: float, loss: str = "mse"
) -> Array:
    """Return f_0 ... f_T (T+1, P, d_o) of f_{t+1} = f_t - (η/B) K(·, X_t) χ_t on P points at once.

    `kernel` (P, P) holds all points, training and probe alike; f0 and targets are (P, d_o), targets being
    read at trained points only; `batches` (T, B) lists the points of each step. The batch loss is a mean over
    the batch and a sum over outputs of "mse", ½(f - y)² with χ = f - y, or "linear", -y f with χ = -y. Raises
    ValueError for shapes that do not fit, indices out of range, or an unknown loss. Source: the kernel regime
    of Yang & Hu, arXiv:2011.14522, Theorem 3.8.
    """
    K, f, y = (np.asarray(v, dtype=np.float64) for v in (kernel, f0, targets))
    steps = np.asarray(batches)
    if f.ndim != 2 or f.shape != y.shape or K.shape != (len(f), len(f)):
        raise ValueError(f"kernel (P, P), f0 (P, d_o), targets (P, d_o) do not fit: {K.shape}, {f.shape}, {y.shape}")
    if steps.ndim != 2 or not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(f"batches must be a (T, B) array of integers, got shape {steps.shape} of {steps.dtype}")
    if steps.size and (steps.min() < 0 or steps.max() >= len(f)):
        raise ValueError(f"batch indices run from {steps.min()} to {steps.max()}, the points from 0 to {len(f) - 1}")
    if loss not in ("mse", "linear"):
        raise ValueError(f"unknown loss {loss!r}: choose 'mse' or 'linear'")
    path = [f]
    for batch in steps:
        chi = -y[batch] if loss == "linear" else path[-1][batch] - y[batch]  # (B, d_o)
        path.append(path[-1] - (eta / len(batch)) * K[:, batch] @ chi)
    return np.stack(path)


def kernel_stable_learning_rate(
    kernel: ArrayLike,
    f0: ArrayLike,
    targets: ArrayLike,
    batches: ArrayLike,
    *,
    bisections: int = 9,
    low: float = -14.0,
    high: float = 10.0,
) -> float:
    """Return the largest learning rate with which kernel gradient descent on the squared loss does not blow up.

    Bisects log2 η in [low, high] by the criterion that `theory.abc.dynamics.max_stable_learning_rate` applies to
    networks: every batch loss, the last one after the last step, stays below 3 max(L_0, L_const), L_const that of f ≡ 0.
    Arguments are those of `kernel_gradient_descent`; nan where the range does not contain the rate.
    """
    steps, y = np.asarray(batches), np.asarray(targets, dtype=np.float64)
    wanted = y[np.concatenate([steps, steps[-1:]])]

    def stable(log_eta: float) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            f = kernel_gradient_descent(kernel, f0, y, steps, 2.0**log_eta)
            seen = np.stack([*(f[t, batch] for t, batch in enumerate(steps)), f[-1, steps[-1]]])
            losses = 0.5 * ((seen - wanted) ** 2).sum(axis=2).mean(axis=1)
        constant = 0.5 * (wanted**2).sum(axis=2).mean()
        return bool(losses.max() < 3 * max(losses[0], constant))  # false for nan

    if not stable(low) or stable(high):
        return float("nan")
    for _ in range(bisections):
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return 2.0 ** ((low + high) / 2)
