from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from theory.curvature.lines import POINTS_BETWEEN, barrier, line, loss_along
from theory.ensemble import normal

K, M = 3, 5


class Landscape:
    """Member j has the loss height_j · (|θ|² − 1)² + slope · θ_0: two wells at ±e for every unit vector e."""

    def __init__(self, heights: Tensor, slope: float = 0.0) -> None:
        self.heights, self.slope, self.asked = heights, slope, []

    def loss(self, theta: Tensor | None = None) -> Tensor:
        assert theta is not None
        self.asked.append(theta)
        return self.heights * (theta.square().sum(-1) - 1).square() + self.slope * theta[:, 0]


class Bowl:
    """The quadratic |A_j θ|² of every member."""

    def __init__(self, roots: Tensor) -> None:
        self.roots = roots

    def loss(self, theta: Tensor | None = None) -> Tensor:
        assert theta is not None
        return torch.einsum("kab,kb->ka", self.roots, theta).square().sum(-1)


HEIGHTS = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
START = torch.eye(M, dtype=torch.float64)[:1].expand(K, M)


def test_double_well_has_a_barrier_of_its_height() -> None:
    """Between the wells −e and e the loss is height · ((2α − 1)² − 1)², highest at α = ½, a point of the line."""
    alphas = line()
    losses = loss_along(Landscape(HEIGHTS), -START, START, alphas)
    expected = HEIGHTS[:, None] * ((2 * alphas - 1) ** 2 - 1) ** 2
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(barrier(losses, alphas), HEIGHTS, rtol=1e-12, atol=0)


def test_barrier_is_measured_from_the_higher_end() -> None:
    """A tilt c·θ_0 puts the ends at −c and c and leaves the top at α = ½ nearly in place for small c."""
    c = 1e-6
    losses = loss_along(Landscape(HEIGHTS, slope=c), -START, START, line())
    torch.testing.assert_close(barrier(losses, line()), HEIGHTS - c, rtol=0, atol=1e-12)


def test_quadratic_has_no_barrier_and_none_is_negative() -> None:
    start, end = normal((K, M), "start"), normal((K, M), "end")
    bowl = Bowl(normal((K, M, M), "bowl"))
    assert barrier(loss_along(bowl, start, end, line()), line()).tolist() == [0.0] * K
    noise = normal((200, 81), "noise")
    assert float(barrier(noise, line()).min()) >= 0
    assert not barrier(torch.linspace(1, 0, 81), line()).item()


def test_points_outside_and_the_order_of_points_do_not_matter() -> None:
    alphas = line()
    losses = normal((4, 81), "noise")
    inside = (alphas >= 0) & (alphas <= 1)
    expected = barrier(losses, alphas)
    order = torch.arange(80, -1, -1)
    assert torch.equal(barrier(losses[:, order], alphas[order]), expected)
    assert torch.equal(barrier(torch.where(inside, losses, 1e9), alphas), expected)
    assert torch.equal(barrier(losses[:, inside], alphas[inside].tolist()), expected)


def test_the_ends_of_the_line_are_the_networks_themselves() -> None:
    start, end = normal((K, M), "start"), 1e-9 * normal((K, M), "end")
    landscape = Landscape(HEIGHTS)
    losses = loss_along(landscape, start, end, [0.0, 0.25, 1.0])
    assert losses.shape == (K, 3)
    assert torch.equal(landscape.asked[0], start)
    assert torch.equal(landscape.asked[2], end)
    torch.testing.assert_close(landscape.asked[1], start + 0.25 * (end - start), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("points", "low", "high"), [(81, -0.5, 1.5), (41, 0.0, 1.0), (121, -1.0, 2.0), (181, -0.3, 1.5), (61, -0.1, 1.1)]
)
def test_line_contains_both_ends_exactly(points: int, low: float, high: float) -> None:
    alphas = line(points, low, high)
    assert alphas.shape == (points,)
    assert (float(alphas[0]), float(alphas[-1])) == (low, high)
    assert 0.0 in alphas.tolist()
    assert 1.0 in alphas.tolist()
    torch.testing.assert_close(
        alphas.diff(), torch.full((points - 1,), (high - low) / (points - 1)).double(), rtol=0, atol=1e-7
    )


def test_the_default_line_has_just_enough_points_between() -> None:
    alphas = line()
    assert int(((alphas >= 0) & (alphas <= 1)).sum()) == POINTS_BETWEEN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((80,), "80 points from -0.5 to 1.5, in steps of 0.0253165, do not hit 0 and 1"),
        ((81, 0.1, 1.5), "does not reach from 0 to 1"),
        ((81, -0.5, 0.9), "does not reach from 0 to 1"),
        ((1, 0.0, 1.0), "does not reach from 0 to 1"),
    ],
)
def test_bad_lines(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        line(*arguments)


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ([0.0, 1.0], "only 2 points lie in"),
        (torch.linspace(0, 1, 40), "only 40 points lie in"),
        ([0.0] * 40 + [1.0] * 40, "only 2 points lie in"),
        (line(81, -2.0, 3.0), "only 17 points"),
        (torch.linspace(0.01, 1, 60), "must contain 0 exactly"),
        (torch.linspace(0, 0.99, 60), "must contain 1 exactly"),
    ],
)
def test_barrier_refuses_a_line_that_could_miss_it(alphas: Tensor | list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        barrier(torch.zeros(2, len(alphas)), alphas)


def test_barrier_of_losses_that_blew_up() -> None:
    losses = torch.zeros(3, 81)
    losses[0, 40], losses[1, 40] = math.inf, math.nan
    losses[2, 20] = math.inf  # α = 0
    found = barrier(losses, line()).tolist()
    assert found[0] == math.inf
    assert math.isnan(found[1])
    assert math.isnan(found[2])


def test_shapes_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"losses \[..., A\] and alphas \[A\] do not match: \[2, 80\] and \[81\]"):
        barrier(torch.zeros(2, 80), line())
    with pytest.raises(ValueError, match=r"must both be \[K, M\], got \[3, 5\] and \[3, 4\]"):
        loss_along(Landscape(HEIGHTS), START, START[:, 1:], line())
    with pytest.raises(ValueError, match="one or more positions"):
        loss_along(Landscape(HEIGHTS), START, START, [])
