"""Depth: a stack of linear-attention layers on linear regression, its best step sizes, and laws of decay with depth.

A task is w ~ N(0, I_d), X [n, d] with iid N(0, 1) entries and y = Xw + σε. A linear-attention layer can take exactly one
step of gradient descent with weight decay on it (von Oswald et al. 2023):

    w_{ℓ+1} = w_ℓ + η_ℓ (b − G w_ℓ) − δ_ℓ w_ℓ,     w_0 = 0,  G = XᵀX/n,  b = Xᵀy/n,

with two scalars per layer. Hence w_D = p(G) b for a polynomial p of degree D − 1. With ρ = σ²/n the posterior mean is
(G + ρI)⁻¹ b, and the excess risk, averaged over w and ε exactly, needs the spectra λ of G alone:

    E‖w_D − w‖² − Bayes risk = E‖w_D − (G + ρI)⁻¹b‖² = E Σ_i λ_i (λ_i + ρ) (p(λ_i) − 1/(λ_i + ρ))²
                             = E Σ_i λ_i / (λ_i + ρ) · s(λ_i)²,    s(λ) = 1 − (λ + ρ) p(λ),  s(−ρ) = 1.

The minimum over all such s is a kernel polynomial, which is proportional to the orthogonal polynomial of degree D of the
measure λ dμ(λ), μ the mean spectral measure. Its roots r_ℓ are real and positive (Gauss nodes), so that
s = Π_ℓ (1 − η_ℓ (λ + ρ)): the stack reaches the minimum at η_ℓ = 1/(r_ℓ + ρ), δ_ℓ = ρ η_ℓ, and no training can do
better. The depth curve is thus approximation error alone, free of an optimiser's floor.

Risks are integrals over μ, kept as nodes and weights in `Spectra`: exactly for Gaussian X (`wishart_spectra`), or from
sampled tasks (`sampled_spectra`). The integrand has degree 2D, so that rare large λ decide at depth: at d = 4, n = 16 the
excess at D = 8 over 50 000 sampled tasks varies more than tenfold. Judge rates on the exact measure.

Shapes: step sizes [K, D] for K members; ρ is a number or one per member, [K].

Source: Zhang et al. 2023, arXiv:2305.19420, Propositions 5.4 and F.4 (approximation error against depth); the optimal
steps are derived here, with Gauss nodes after Golub and Welsch 1969; the Wishart density after de Bruijn 1955.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from torch import Tensor

from theory.ensemble import normal

LAWS = ("exponential", "power", "constant")

_POWERS = (0.05, 4.0)  # where p of exp(−c D^p) is sought; p → 0 is the power law itself
_TAIL = 14.0  # singular values beyond √d + √n + 14 have no weight, also times λ^(2D) of a deep stack
_LOG_ROUNDING = 1e-12  # errors are not known better than this: below it, fits tie and the simpler law wins


@dataclass(frozen=True)
class Spectra:
    """The mean spectral measure μ of G for K members: nodes λ ≥ 0 and weights, each [K, N]; weights add up to d."""

    nodes: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if self.nodes.dim() != 2 or self.nodes.shape != self.weights.shape:
            raise ValueError(f"nodes and weights must both be [K, N], got {_sizes(self.nodes, self.weights)}")
        if not (bool((self.nodes >= 0).all()) and bool((self.weights >= 0).all())):
            raise ValueError("eigenvalues of G and their weights cannot be negative or undefined")


def wishart_spectra(sizes: Sequence[tuple[int, int]], points: int = 400, device: torch.device | str = "cpu") -> Spectra:
    """Return the exact mean spectral measure of G = XᵀX/n for each (d, n) in `sizes`, on `points` + 1 nodes.

    X [n, d] has iid N(0, 1) entries. The density of the nonzero eigenvalues is put on a Gauss–Legendre grid over the
    singular values of X; moments are exact to about 1e-12 for the sizes tested, up to min(d, n) = 64. The first node
    is 0, with the weight d − n if n < d. Raises ValueError for no sizes and sizes below 1.
    """
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ValueError(f"sizes must be pairs (d, n) of at least 1 each, got {list(sizes)}")
    nodes, weights = np.zeros((2, len(sizes), points + 1))
    for k, (d, n) in enumerate(sizes):
        few = min(d, n)
        u, weights[k, 1:] = _singular_values(few, max(d, n), points)
        nodes[k, 1:], weights[k, 0] = u**2 / n, d - few
    return Spectra(torch.from_numpy(nodes).to(device), torch.from_numpy(weights).clamp_(min=0.0).to(device))


def sampled_spectra(d: int, n: int, tasks: int, seeds: Sequence[int], device: torch.device | str = "cpu") -> Spectra:
    """Return the eigenvalues of G = XᵀX/n for `tasks` draws of X [n, d] per seed, K = seeds, N = tasks · d, in float64.

    For n < d the vanishing eigenvalues are exactly 0. Raises ValueError for sizes below 1 and no seeds.
    """
    if min(d, n, tasks) < 1 or not seeds:
        raise ValueError(f"d = {d}, n = {n}, tasks = {tasks} must be at least 1, with at least one seed")
    found = []
    for seed in seeds:
        X = normal((tasks, n, d), "depth", seed, d, n, tasks)
        spectrum = torch.linalg.eigvalsh(X.mT @ X / n).clamp_(min=0.0)
        spectrum[:, : max(d - n, 0)] = 0.0
        found.append(spectrum.flatten())
    nodes = torch.stack(found).to(device)
    return Spectra(nodes, torch.full_like(nodes, 1 / tasks))


def run_stack(G: Tensor, b: Tensor, eta: Tensor, delta: Tensor) -> Tensor:
    """Return w_D [K, S, d] of the stack, for G [K, S, d, d], b [K, S, d] and step sizes [K, D].

    Raises ValueError for shapes that do not fit.
    """
    _check_steps(eta, delta)
    if G.dim() != 4 or G.shape[:3] != b.shape or G.shape[0] != eta.shape[0]:
        raise ValueError(f"G must be [K, S, d, d] and b [K, S, d] with K = {eta.shape[0]}, got {_sizes(G, b)}")
    w = torch.zeros_like(b)
    for step, decay in zip(eta.T[..., None, None], delta.T[..., None, None], strict=True):
        w = w + step * (b - (G @ w.unsqueeze(-1)).squeeze(-1)) - decay * w
    return w


def excess_risk(spectra: Spectra, rho: float | Tensor, eta: Tensor, delta: Tensor) -> Tensor:
    """Return E‖w_D − w‖² less the Bayes risk, [K]: exact over w and noise, averaged over the spectra.

    It is also the mean squared distance to the ridge mean. One member's spectra serve all step sizes. Raises
    ValueError for shapes that do not fit and ρ < 0.
    """
    _check_steps(eta, delta)
    nodes, K = spectra.nodes, len(eta)
    ridge = _ridge(rho, K, nodes)
    if nodes.shape[0] not in (1, K):
        raise ValueError(f"spectra must have 1 or K = {K} members, as the step sizes, got {nodes.shape[0]}")
    p = torch.zeros(K, nodes.shape[1], dtype=nodes.dtype, device=nodes.device)
    for step, decay in zip(eta.T.unsqueeze(-1), delta.T.unsqueeze(-1), strict=True):
        p = p * (1 - step * nodes - decay) + step
    # λ/(λ + ρ) s², with the zeros of G, where b vanishes, left out even for ρ = 0
    weights = spectra.weights * torch.where(nodes > 0, nodes / (nodes + ridge), 0.0)
    return (weights * (1 - (nodes + ridge) * p).square()).sum(1)


def bayes_risk(spectra: Spectra, rho: float | Tensor) -> Tensor:
    """Return the risk of the posterior mean, E Σ_i ρ/(λ_i + ρ), [K]. Raises ValueError for ρ < 0 and not K of them."""
    ridge = _ridge(rho, len(spectra.nodes), spectra.nodes)
    shares = torch.where(spectra.nodes > 0, ridge / (spectra.nodes + ridge), 1.0)  # b knows nothing of a null direction
    return (spectra.weights * shares).sum(1)


def optimal_steps(spectra: Spectra, rho: float | Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the step sizes (η, δ), each [K, D], with the least risk on the given spectra; η ascends with ℓ.

    They are found without a search: η_ℓ = 1/(r_ℓ + ρ), δ_ℓ = ρ/(r_ℓ + ρ), r_ℓ the Gauss nodes of λ dμ(λ). Raises
    ValueError for depth < 1, fewer distinct positive eigenvalues than layers, and as `bayes_risk`.
    """
    ridge = _ridge(rho, len(spectra.nodes), spectra.nodes)
    roots = _gauss_nodes(spectra.nodes, spectra.nodes * spectra.weights, depth).flip(1)  # small steps first
    return 1 / (roots + ridge), ridge / (roots + ridge)


def constant_steps(members: int, depth: int, eta: float) -> tuple[Tensor, Tensor]:
    """Return step sizes that were never fitted: η_ℓ = `eta` in every layer and δ_ℓ = 0, each [members, D]."""
    steps = torch.full((members, depth), eta, dtype=torch.float64)
    return steps, torch.zeros_like(steps)


def one_layer_risk(d: int, n: int, noise: float) -> float:
    """Return the least risk of one layer, d (1 − 1/(1 + (d + 1 + σ²)/n)), `noise` = σ²: E tr G² = d (n + d + 1)/n."""
    return d * (1 - 1 / (1 + (d + 1 + noise) / n))


@dataclass(frozen=True)
class Law:
    """One fitted law of decay: log error = `level` − `rate` · h(D), with h(D) = D^power, log D, or 0.

    rss is the residual sum of squares of log error and aicc Akaike's criterion with the small-sample correction, less
    a constant shared by all laws. `power` is NaN but for the exponential law; `rate` is 0 for the constant.
    """

    name: str
    level: float
    rate: float
    power: float
    rss: float
    aicc: float


def decay_law(depths: ArrayLike, errors: ArrayLike) -> dict[str, Law]:
    """Return the three laws exp(−c D^p), D^{−a} and a constant, fitted to log errors, by name, the best first.

    Least squares on log errors; p is searched in [0.05, 4]. With m depths and k numbers fitted, the noise variance
    among them (4, 3 and 2), AICc = m log(rss/m) + 2k + 2k(k + 1)/(m − k − 1), so at least six depths are needed.
    Raises ValueError for fewer, for unequal lengths, and for depths below 1 or errors that are not positive.
    """
    D, e = np.asarray(depths, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if D.ndim != 1 or D.shape != e.shape or len(np.unique(D)) < 6:
        raise ValueError(f"pass an error for each of at least 6 depths, got shapes {D.shape} and {e.shape}")
    if not ((D >= 1).all() and (e > 0).all() and np.isfinite(e).all()):
        raise ValueError(f"depths must be at least 1 and errors positive and finite, got {D.tolist()}, {e.tolist()}")
    log_e = np.log(e)

    def of_power(p: float) -> float:
        return _line(D**p, log_e)[2]

    grid = np.linspace(*_POWERS, 80)  # the profile over p can have two valleys: bracket the lowest first
    at = int(np.argmin([of_power(float(p)) for p in grid]))
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    p = float(minimize_scalar(of_power, bounds=(low, high), method="bounded", options={"xatol": 1e-10}).x)
    nan = float("nan")
    laws = [
        _law("exponential", D**p, log_e, p, 4),
        _law("power", np.log(D), log_e, nan, 3),
        _law("constant", np.zeros_like(D), log_e, nan, 2),
    ]
    return {law.name: law for law in sorted(laws, key=lambda law: law.aicc)}


def _law(name: str, h: np.ndarray, log_e: np.ndarray, power: float, k: int) -> Law:
    level, slope, rss = _line(h, log_e)
    m = len(h)
    aicc = m * float(np.log(max(rss / m, _LOG_ROUNDING**2))) + 2 * k + 2 * k * (k + 1) / (m - k - 1)
    return Law(name, level, 0.0 - slope, power, rss, aicc)


def _line(h: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Return (intercept, slope, rss) of the least-squares line; slope 0 where h is constant."""
    centred = h - h.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread > 0 else 0.0
    residual = y - y.mean() - slope * centred
    return float(y.mean()) - slope * float(h.mean()), slope, float(residual @ residual)


def _gauss_nodes(nodes: Tensor, weights: Tensor, depth: int) -> Tensor:
    """The `depth` Gauss nodes, ascending, of the discrete measures Σ_j weights_j δ(nodes_j), [K, N] → [K, depth].

    Lanczos with full reorthogonalisation on diag(nodes), started at √weights, gives the Jacobi matrix of the
    orthogonal polynomials; its eigenvalues are the nodes.
    """
    if depth < 1:
        raise ValueError(f"depth = {depth} must be at least 1")
    K, N = nodes.shape
    basis = torch.zeros(K, min(depth, N) + 1, N, dtype=nodes.dtype, device=nodes.device)
    basis[:, 0] = (weights / weights.sum(1, keepdim=True)).sqrt()
    jacobi = torch.zeros(K, depth, depth, dtype=nodes.dtype, device=nodes.device)
    floor = torch.finfo(nodes.dtype).eps * N * nodes.abs().amax(1)
    for j in range(depth):
        product = nodes * basis[:, j]
        jacobi[:, j, j] = (product * basis[:, j]).sum(1)
        if j == depth - 1:
            break
        for _ in range(2):  # twice is enough for orthogonality to rounding
            known = basis[:, : j + 1]
            product = product - (known.mT @ (known @ product.unsqueeze(-1))).squeeze(-1)
        length = torch.linalg.vector_norm(product, dim=1)
        if not bool((length > floor).all()):
            raise ValueError(
                f"depth = {depth} exceeds the number of distinct positive eigenvalues, {j + 1}: draw more tasks"
            )
        jacobi[:, j, j + 1] = jacobi[:, j + 1, j] = length
        basis[:, j + 1] = product / length.unsqueeze(1)
    return torch.linalg.eigvalsh(jacobi)


def _singular_values(few: int, many: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes u and weights of the mean measure, of mass `few`, of the singular values of a Gaussian matrix [many, few].

    With t = u²/2 they have the joint density ∝ Π_i w(t_i) Π_{i<j} |t_i − t_j|, w = t^a e^{−t}, a = (many − few − 1)/2. By
    de Bruijn, E Π_i g(t_i) = Pf A[g] / Pf A[1] with A_jk = ∫∫ sgn(t' − t) φ_j(t) φ_k(t') g w(t) g w(t'), φ_j any
    polynomials of degree j; for odd `few`, A has a border ∫ φ_j g w. The density is the derivative of log Pf A by g:
    Ψ(t)ᵀ A⁻¹ Φ(t) with Φ = (φ_j w)_j, Ψ = (∫ sgn(t' − t) φ_j w dt')_j, and entries 0 and 1 for the border.
    """
    low, high = max(0.0, np.sqrt(many) - np.sqrt(few) - _TAIL), np.sqrt(many) + np.sqrt(few) + _TAIL
    x, gauss = np.polynomial.legendre.leggauss(points)
    u, du = low + (high - low) * (1 + x) / 2, (high - low) / 2 * gauss
    # P_k integrates to (P_{k+1} − P_{k−1})/(2k + 1): row i of `below` is the integral from `low` to u_i
    legendre = np.polynomial.legendre.legvander(x, points)
    primitive = np.column_stack([1 + x, (legendre[:, 2:] - legendre[:, :-2])])[:, :points]
    below = primitive / 2 @ legendre[:, :points].T * du
    log_weight = (many - few) * np.log(u) - u**2 / 2  # of w dt/du, which is smooth also where a = −1/2
    phi, psi = np.zeros((2, few + few % 2, points))
    phi[0] = np.exp(log_weight - log_weight.max())
    for j in range(few):
        if j:
            phi[j] = u**2 * phi[j - 1]
        for _ in range(2):  # orthogonal φ_j w keep A well conditioned; twice is enough
            phi[j] -= (phi[j] * du @ phi[:j].T) @ phi[:j]
        phi[j] /= np.sqrt(phi[j] ** 2 @ du)
    total = phi @ du
    psi[:] = total[:, None] - 2 * phi @ below.T
    A = (phi * du) @ psi.T
    if few % 2:
        A[-1, :], A[:, -1], psi[-1] = -total, total, 1.0
    A = (A - A.T) / 2
    return u, du * np.einsum("jt,jt->t", psi, np.linalg.solve(A, phi))


def _ridge(rho: float | Tensor, members: int, like: Tensor) -> Tensor:
    """ρ as [members, 1] or [1, 1]."""
    ridge = torch.as_tensor(rho, dtype=like.dtype, device=like.device).reshape(-1, 1)
    if ridge.shape[0] not in (1, members) or not bool((ridge >= 0).all()):
        raise ValueError(f"rho must be a number or one per member ({members}), none negative, got {rho}")
    return ridge


def _check_steps(eta: Tensor, delta: Tensor) -> None:
    if eta.dim() != 2 or eta.shape != delta.shape:
        raise ValueError(f"eta and delta must both be [K, D], got {_sizes(eta, delta)}")


def _sizes(*tensors: Tensor) -> str:
    return " and ".join(str(list(tensor.shape)) for tensor in tensors)
