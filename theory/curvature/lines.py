"""The loss along the straight line that joins two networks, and the barrier on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

POINTS_BETWEEN = 41
"""A barrier needs at least so many points in [0, 1]: fewer can step over it, and the two ends alone never show one."""


class HasLoss(Protocol):
    """Whatever can tell the loss [K] of K networks at given parameters theta [K, M], as a `Curvature` can."""

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """Return the mean loss of each network, [K]."""
        ...


def line(points: int = 81, low: float = -0.5, high: float = 1.5) -> Tensor:
    """Return evenly spaced positions α from low to high, [points], float64, among them 0 and 1 exactly.

    α = 0 is the start and α = 1 the end. Raises ValueError if 0 or 1 is not on the grid.
    """
    if not (points >= 2 and low <= 0 and high >= 1):
        raise ValueError(f"a line of {points} points from {low} to {high} does not reach from 0 to 1")
    alphas = np.linspace(low, high, points)
    for end in (0.0, 1.0):
        nearest = np.abs(alphas - end).argmin()
        if abs(alphas[nearest] - end) > 1e-9 * (high - low):
            step = (high - low) / (points - 1)
            raise ValueError(f"{points} points from {low} to {high}, in steps of {step:g}, do not hit 0 and 1")
        alphas[nearest] = end  # linspace misses it by rounding
    return torch.from_numpy(alphas)


def loss_along(curvature: HasLoss, start: Tensor, end: Tensor, alphas: Tensor | Sequence[float]) -> Tensor:
    """Return the loss at (1 − α)·start + α·end for every α, [K, A], from `curvature.loss` on its whole data set.

    start and end are parameters of the same K networks, [K, M]. At α = 0 and 1 the loss is that of start and end, to
    the last bit. Raises ValueError for shapes that do not match and for no α.
    """
    if start.dim() != 2 or start.shape != end.shape:
        raise ValueError(f"start and end must both be [K, M], got {list(start.shape)} and {list(end.shape)}")
    positions = torch.as_tensor(alphas, dtype=torch.float64, device="cpu")
    if positions.dim() != 1 or not len(positions):
        raise ValueError(f"alphas must be a list of one or more positions, got the shape {list(positions.shape)}")
    # start + α (end − start) would miss `end` by rounding.
    return torch.stack([curvature.loss((1 - alpha) * start + alpha * end) for alpha in positions.tolist()], dim=-1)


def barrier(losses: Tensor, alphas: Tensor | Sequence[float]) -> Tensor:
    """Return B = max over α in [0, 1] of L(α), less max(L(0), L(1)), [...], for losses [..., A]: never negative.

    Points outside [0, 1] do not count; the order of the points does not matter. Not a number where a loss is not, or
    where both the top and an end are infinite. Raises ValueError if 0 or 1 is not among the positions or fewer than
    `POINTS_BETWEEN` distinct ones lie in [0, 1]. Source: Sagun et al. 2017, arXiv:1706.04454, section 4.1, which reads
    it off a plot.
    """
    positions = torch.as_tensor(alphas, dtype=torch.float64, device="cpu")
    if positions.dim() != 1 or losses.dim() < 1 or losses.shape[-1] != len(positions):
        raise ValueError(
            f"losses [..., A] and alphas [A] do not match: {list(losses.shape)} and {list(positions.shape)}"
        )
    for end in (0.0, 1.0):
        if not bool((positions == end).any()):
            raise ValueError(f"alphas must contain {end:g} exactly: a barrier is measured against both ends")
    between = (positions >= 0) & (positions <= 1)
    distinct = len(positions[between].unique())
    if distinct < POINTS_BETWEEN:
        raise ValueError(f"only {distinct} points lie in [0, 1]: a barrier needs at least {POINTS_BETWEEN}")
    ends = losses[..., (positions == 0.0) | (positions == 1.0)].amax(-1)
    return losses[..., between].amax(-1) - ends
