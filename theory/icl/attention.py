"""Attention as a conditional mean: kernel ridge attention, softmax attention, and the constant between their limits.

Shapes: queries q [..., n, d], keys K [..., T, d], values V [..., T, d_v]; the leading axes are members (one prompt each)
and results are [..., n, d_v]. `Prompt` stacks members as [S, ...].

With unit-norm keys and queries the Gaussian kernel 𝔎(a, b) = exp(−‖a − b‖²/2γ) is proportional to exp(a·b/γ). Softmax
attention over many i.i.d. keys is then a Nadaraya–Watson estimate and tends to E[v 𝔎(k, q)] / E[𝔎(k, q)]. For keys
uniform on the sphere S^{d−1} the kernel acts on a spherical harmonic of degree ℓ as the number (Funk–Hecke)

    μ_ℓ = E_k[𝔎(k, q) Y_ℓ(k)] / Y_ℓ(q) = e^{−κ} Γ(d/2) (2/κ)^{d/2−1} I_{d/2−1+ℓ}(κ),   κ = 1/γ,

so where E[v|k] is such a harmonic, softmax attention tends to a_ℓ E[v|q] with a_ℓ = μ_ℓ/μ_0, while attention by kernel
ridge regression tends to E[v|q]. Hence the ratio of the limits is 1/a_ℓ: it depends on γ, d and ℓ, and there is no
single constant for values whose conditional mean mixes degrees.

Source: Zhang et al. 2023, arXiv:2305.19420, section 4.1 (attn†) and Proposition 4.3 (the limits); μ_ℓ from the
Funk–Hecke formula (Müller 1966, Spherical Harmonics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.special import gammaln, ive
from torch import Tensor

from theory.ensemble import normal, stream

Kernel = Callable[[Tensor, Tensor], Tensor]  # ([..., n, d], [..., m, d]) -> [..., n, m]

RIDGES: dict[str, Callable[[int], float]] = {"fixed": lambda T: 1.0, "paper": lambda T: T**0.75}
"""The ridge ρ as a function of the number of keys: 1, and the T^{3/4} in the proof of Proposition 4.3."""


def softmax_attention(q: Tensor, K: Tensor, V: Tensor, gamma: float) -> Tensor:
    """Return Vᵀ softmax(K q / γ), [..., n, d_v]: the paper's attention, without a factor 1/√d.

    Raises ValueError for shapes that do not fit and γ ≤ 0. Source: section 4.1.
    """
    _check(q, K, V)
    _check_gamma(gamma)
    return torch.softmax((q @ K.mT) / gamma, dim=-1) @ V


def cme_attention(q: Tensor, K: Tensor, V: Tensor, kernel: Kernel, ridge: float) -> Tensor:
    """Return attn†(q, K, V) = Vᵀ(𝔎(K, K) + ρI)⁻¹ 𝔎(K, q), [..., n, d_v]: the conditional mean embedding at q.

    It is computed in double precision by Cholesky; peak memory is about 16·T² bytes per member. With the linear kernel
    and ρ = σ²/λ it is the posterior mean of Bayesian linear regression. Raises ValueError for shapes that do not fit
    and ρ ≤ 0. Source: equations (4.4)–(4.8).
    """
    _check(q, K, V)
    if not ridge > 0:
        raise ValueError(f"ridge = {ridge} must be positive: the kernel matrix alone may be singular")
    q, K, V = q.double(), K.double(), V.double()
    gram = kernel(K, K)  # [..., T, T]
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return kernel(q, K) @ torch.cholesky_solve(V, torch.linalg.cholesky(gram))


def rbf_kernel(gamma: float) -> Kernel:
    """Return the Gaussian kernel 𝔎(a, b) = exp(−‖a − b‖²/2γ). Raises ValueError for γ ≤ 0."""
    _check_gamma(gamma)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        exponent = a @ b.mT
        exponent -= a.square().sum(-1).unsqueeze(-1) / 2
        exponent -= b.square().sum(-1).unsqueeze(-2) / 2
        return exponent.clamp_(max=0.0).div_(gamma).exp_()  # rounding must not lift 𝔎 above 1

    return kernel


def linear_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return 𝔎(a, b) = a·b."""
    return a @ b.mT


def kernel_eigenvalue(d: int, gamma: float, degree: int) -> float:
    """Return μ_ℓ of the Gaussian kernel under the uniform law on S^{d−1}, for harmonics of degree ℓ = `degree`.

    Raises ValueError for d < 2, γ ≤ 0 and ℓ < 0.
    """
    _check_sphere(d, gamma, degree)
    nu, kappa = d / 2 - 1, 1 / gamma
    scale = math.exp(float(gammaln(d / 2)) + nu * math.log(2 / kappa))
    return scale * float(ive(nu + degree, kappa))  # ive(ν, κ) = e^{−κ} I_ν(κ) does not overflow for a sharp kernel


def funk_hecke(d: int, gamma: float, degree: int) -> float:
    """Return a_ℓ = I_{d/2−1+ℓ}(1/γ) / I_{d/2−1}(1/γ), by which softmax attention shrinks a harmonic of degree ℓ.

    a_0 = 1, and a_1 is A_d(1/γ), the mean resultant length of the von Mises–Fisher law. Raises ValueError for d < 2,
    γ ≤ 0, ℓ < 0, and a γ so large that the Bessel functions underflow.
    """
    _check_sphere(d, gamma, degree)
    nu, kappa = d / 2 - 1, 1 / gamma
    bottom = float(ive(nu, kappa))
    if not bottom > 0:
        raise ValueError(f"I_ν(1/γ) underflows at d = {d}, gamma = {gamma}: use a smaller gamma or dimension")
    return float(ive(nu + degree, kappa)) / bottom


def predicted_constant(d: int, gamma: float, degree: int, T: int, ridge: float) -> float:
    """Return C_T = (1/a_ℓ) · Tμ_ℓ/(Tμ_ℓ + ρ): the constant for T keys and ridge ρ, to leading order in T.

    Kernel ridge regression shrinks a harmonic by Tμ_ℓ/(Tμ_ℓ + ρ). The limit is 1/a_ℓ wherever ρ = o(T); it is
    reached as 1/T for a fixed ρ, but only as T^{−1/4} for the paper's ρ = T^{3/4}. Raises as `kernel_eigenvalue`.
    """
    signal = T * kernel_eigenvalue(d, gamma, degree)
    return signal / (signal + ridge) / funk_hecke(d, gamma, degree)


@dataclass(frozen=True)
class Prompt:
    """Keys and values of S prompts, with queries and what is known about them.

    keys [S, T, d] uniform on the sphere; values [S, T, d_v] of norm 1; queries [S, n, d] uniform on the sphere;
    mean E[v|k = q] [S, n, d_v]; degrees: per value coordinate, the degree of the harmonic that its conditional mean is.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    mean: Tensor
    degrees: tuple[int, ...]

    def softmax_limit(self, gamma: float) -> Tensor:
        """Return the limit of softmax attention at the queries, a_ℓ E[v|q] in each coordinate, [S, n, d_v]."""
        d = self.keys.shape[-1]
        factors = [funk_hecke(d, gamma, degree) for degree in self.degrees]
        return self.mean * torch.tensor(factors, dtype=self.mean.dtype, device=self.mean.device)


def degree_one_prompts(
    d: int, T: int, strength: float, seeds: Sequence[int], queries: int, device: torch.device | str = "cpu"
) -> Prompt:
    """Return one prompt per seed with v = s·Zk, P(s = 1) = (1 + ρ)/2 and P(s = −1) = (1 − ρ)/2, so E[v|k] = ρZk.

    ρ is `strength`; Z is a uniform random orthogonal matrix. Z and the queries depend on the seed and d, keys and
    signs also on T. Raises ValueError for d < 2, T < 1, a strength outside [−1, 1] and no seeds.
    """
    _check_prompts(d, T, strength, seeds)
    Z = torch.stack([_orthogonal(d, seed) for seed in seeds])  # [S, d, d]
    keys, asked = _sphere_points("keys", d, T, seeds), _sphere_points("queries", d, queries, seeds)
    signs = _signs(torch.full((len(seeds), T), strength, dtype=torch.float64), "signs", seeds)
    values = signs.unsqueeze(-1) * (keys @ Z.mT)
    return _prompt(keys, values, asked, strength * (asked @ Z.mT), (1,) * d, device)


def mixed_degree_prompts(
    T: int, strength: float, seeds: Sequence[int], queries: int, device: torch.device | str = "cpu"
) -> Prompt:
    """Return one prompt per seed on the circle, k = (cos θ, sin θ), with E[v|k] = (ρ/2)(cos θ, cos 2θ).

    v is one of (±1, 0) and (0, ±1): a fair coin chooses the axis, then the sign is + with probability
    (1 + ρ cos θ)/2 or (1 + ρ cos 2θ)/2. The two coordinates have degrees 1 and 2, so no one constant can map the
    softmax limit on E[v|q]. ρ is `strength`. Raises ValueError as `degree_one_prompts`.
    """
    _check_prompts(2, T, strength, seeds)
    keys, asked = _sphere_points("keys", 2, T, seeds), _sphere_points("queries", 2, queries, seeds)
    tilts = strength * _two_harmonics(keys)  # [S, T, 2]
    second = _uniform((len(seeds), T), "axis", seeds) < 0.5
    signs = _signs(torch.where(second, tilts[..., 1], tilts[..., 0]), "signs", seeds)
    values = torch.nn.functional.one_hot(second.long(), 2) * signs.unsqueeze(-1)
    return _prompt(keys, values, asked, strength / 2 * _two_harmonics(asked), (1, 2), device)


def limit_constant(cme: Tensor, softmax: Tensor) -> tuple[Tensor, Tensor]:
    """Return (Ĉ, ρ_T), each [...]: the least-squares constant of attn† ≈ C·attn and the relative residual.

    Ĉ = ⟨attn†, attn⟩/‖attn‖² and ρ_T = ‖attn† − Ĉ attn‖/‖attn†‖ over all queries and coordinates of a member. Pass
    one coordinate, `cme[..., :1]`, for its own constant. Raises ValueError for unequal shapes.
    """
    if cme.shape != softmax.shape or cme.dim() < 2:
        raise ValueError(f"both attentions must be [..., n, d_v], got {list(cme.shape)} and {list(softmax.shape)}")
    dagger, plain = cme.flatten(-2), softmax.flatten(-2)
    constant = (dagger * plain).sum(-1) / plain.square().sum(-1)
    residual = torch.linalg.vector_norm(dagger - constant.unsqueeze(-1) * plain, dim=-1)
    return constant, residual / torch.linalg.vector_norm(dagger, dim=-1)


def _prompt(
    keys: Tensor, values: Tensor, asked: Tensor, mean: Tensor, degrees: tuple[int, ...], device: torch.device | str
) -> Prompt:
    return Prompt(keys.to(device), values.to(device), asked.to(device), mean.to(device), degrees)


def _sphere_points(what: str, d: int, points: int, seeds: Sequence[int]) -> Tensor:
    draws = torch.stack([normal((points, d), "attention", what, seed, d, points) for seed in seeds])
    return draws / torch.linalg.vector_norm(draws, dim=-1, keepdim=True)  # [S, points, d]


def _orthogonal(d: int, seed: int) -> Tensor:
    """A Haar-distributed orthogonal matrix: QR with the signs of R's diagonal moved to Q."""
    Q, R = torch.linalg.qr(normal((d, d), "attention", "task", seed, d))
    return Q * torch.sign(torch.diagonal(R))


def _two_harmonics(points: Tensor) -> Tensor:
    """(cos θ, cos 2θ) of points on the circle, [..., 2]."""
    return torch.stack([points[..., 0], points[..., 0].square() - points[..., 1].square()], dim=-1)


def _uniform(shape: tuple[int, int], what: str, seeds: Sequence[int]) -> Tensor:
    T = shape[1]
    draws = [torch.rand(T, generator=stream("attention", what, seed, T), dtype=torch.float64) for seed in seeds]
    return torch.stack(draws)


def _signs(mean: Tensor, what: str, seeds: Sequence[int]) -> Tensor:
    """±1 with the given means, [S, T]."""
    positive = _uniform((mean.shape[0], mean.shape[1]), what, seeds) < (1 + mean) / 2
    return positive.to(mean.dtype) * 2 - 1


def _check(q: Tensor, K: Tensor, V: Tensor) -> None:
    shapes = f"got q {list(q.shape)}, K {list(K.shape)}, V {list(V.shape)}"
    if min(q.dim(), K.dim(), V.dim()) < 2:
        raise ValueError(f"attention takes q [..., n, d], K [..., T, d], V [..., T, d_v], {shapes}")
    if q.shape[-1] != K.shape[-1] or K.shape[-2] != V.shape[-2]:
        raise ValueError(f"q and K must share d, K and V must share T; {shapes}")


def _check_gamma(gamma: float) -> None:
    if not (gamma > 0 and math.isfinite(gamma)):
        raise ValueError(f"gamma = {gamma} must be positive and finite")


def _check_sphere(d: int, gamma: float, degree: int) -> None:
    _check_gamma(gamma)
    if d < 2 or degree < 0:
        raise ValueError(f"d = {d} must be at least 2 and degree = {degree} at least 0")


def _check_prompts(d: int, T: int, strength: float, seeds: Sequence[int]) -> None:
    if d < 2 or T < 1 or not seeds:
        raise ValueError(f"a prompt needs d >= 2, T >= 1 and seeds, got d = {d}, T = {T} and {len(seeds)} seeds")
    if not -1 <= strength <= 1:
        raise ValueError(f"strength = {strength} must lie in [-1, 1]: it is the mean of a sign")
