"""The density of a spectrum from products alone: stochastic Lanczos quadrature.

It gives the mass of the spectrum anywhere, with a Monte-Carlo interval. A mass of 10 eigenvalues in 10 000 drowns in that
interval: outliers must be counted with `eigenpairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor

from theory.curvature.lanczos import Product, lanczos
from theory.ensemble import normal


class Estimate(NamedTuple):
    """A mean over probes and its 95 % t-interval, tensors of one shape."""

    mean: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Quadrature:
    """Nodes θ and weights w, [K, V, m] each: Σ_i w_i g(θ_i) estimates tr g(H) / M, once per probe.

    The weights of a probe sum to 1. Intervals are over probes: they cover the choice of probes, not the error of
    the quadrature itself, which falls exponentially in m for smooth g but slowly for a sharp threshold in a bulk.
    """

    nodes: Tensor
    weights: Tensor
    parameters: int

    def expect(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """Return tr g(H) / M for `function` g, from nodes [K, V, m] to [..., K, V, m]: estimates [..., K]."""
        each = (self.weights * function(self.nodes)).sum(-1)  # [..., K, V]
        V = each.shape[-1]
        mean = each.mean(-1)
        half = float(student.ppf(0.975, V - 1)) * each.std(-1) / V**0.5
        return Estimate(mean, mean - half, mean + half)

    def density(self, grid: Tensor, sigma: float) -> Estimate:
        """Return the density at the points of `grid` [G], smoothed by a Gaussian of width `sigma`: estimates [K, G].

        Raises ValueError unless sigma > 0.
        """
        if not sigma > 0:
            raise ValueError(f"sigma = {sigma} must be positive")
        G = grid.to(self.nodes).view(-1, 1, 1, 1)
        norm = sigma * (2 * torch.pi) ** 0.5
        return Estimate(*(e.mT for e in self.expect(lambda x: torch.exp(-0.5 * ((G - x) / sigma) ** 2) / norm)))

    def mass(self, low: float | Tensor, high: float | Tensor) -> Estimate:
        """Return the fraction of eigenvalues in [low, high], numbers or one per member [K]: estimates [K]."""
        low, high = self._per_member(low), self._per_member(high)
        return self.expect(lambda x: ((x >= low) & (x <= high)).to(x.dtype))

    def count_above(self, threshold: float | Tensor) -> Estimate:
        """Return the number of eigenvalues above a number, or above one number per member [K]: estimates [K].

        Right on average, but with an error of order √count times a number near 1: not a way to count a few outliers.
        """
        threshold = self._per_member(threshold)
        return Estimate(*(self.parameters * e for e in self.expect(lambda x: (x > threshold).to(x.dtype))))

    def _per_member(self, value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=self.nodes.dtype, device=self.nodes.device).reshape(-1, 1, 1)


def slq(
    product: Product,
    members: int,
    parameters: int,
    probes: int,
    steps: int,
    seed: int = 0,
    *,
    probe: str = "rademacher",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Quadrature:
    """Estimate the spectral density from `probes` random vectors and `steps` Lanczos steps from each.

    Every step is one product of all probes of all members. `probe` is "rademacher" or "gaussian"; a probe is the same
    for every member. Nodes are the eigenvalues of T, weights the squares of the first entries of its eigenvectors.
    Raises ValueError for fewer than two probes (no interval), an unknown `probe`, and as `lanczos`.
    Source: Golub & Welsch 1969; Ubaru, Chen & Saad 2017; for Hessians Ghorbani et al. 2019, arXiv:1901.10159.
    """
    if probes < 2:
        raise ValueError(f"probes = {probes}: an interval over probes needs at least 2")
    if probe not in ("rademacher", "gaussian"):
        raise ValueError(f"probe = {probe!r} must be 'rademacher' or 'gaussian'")
    start = normal((probes, parameters), "probe", seed, dtype=dtype, device=device)
    if probe == "rademacher":
        start = torch.where(start < 0, -1.0, 1.0).to(dtype)
    T = lanczos(product, start.mT.expand(members, parameters, probes), steps).matrix()
    nodes, vectors = torch.linalg.eigh(T)
    return Quadrature(nodes, vectors[..., 0, :] ** 2, parameters)
