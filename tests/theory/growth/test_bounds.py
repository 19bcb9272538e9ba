"""Bounds on additions and on what new inputs bring, against counting, concatenation and each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from theory.ensemble.seeding import normal, stream
from theory.growth.bounds import (
    Residual,
    additions_bound,
    ascend,
    cheap_increase,
    exact_increase,
    optimised_filters,
    residual,
)
from theory.growth.candidates import score_candidates
from theory.growth.expand import add_channels, change, new_filters
from theory.growth.kfac import Layer, kronecker_score
from theory.growth.kfac import layer as kronecker_layer
from theory.growth.network import Architecture, initial
from theory.growth.scores import expansion_score, limit
from theory.growth.taps import Tap

K, d, c, n, m, Q = 2, 4, 3, 60, 2, 5


def one_hot(count: int, classes: int) -> Tensor:
    return functional.one_hot(
        torch.randint(classes, (count,), generator=stream("labels", count, classes)), classes
    ).double()


@pytest.fixture(scope="module")
def layer() -> Layer:
    pulled = normal((K, c, n), "g") / n
    spread = normal((K, c, 40), "s")
    return Layer(normal((K, d, n), "a"), pulled, torch.bmm(spread, spread.mT) / 40, 20)


@pytest.fixture(scope="module")
def proposed(layer: Layer) -> Tensor:
    """Proposals that share something with the current inputs, so that both bounds differ."""
    mix = normal((K, Q, m, d), "mix")
    return mix @ layer.read.unsqueeze(1) + normal((K, Q, m, n), "new")


def widened(of: Layer, with_: Tensor) -> Layer:
    return Layer(torch.cat([of.read, with_], 1), of.pulled, of.s, of.examples)


# -------------------------------------------------------------------------------------------------- new inputs


def test_the_exact_increase_is_that_of_the_layer_with_more_inputs(layer: Layer, proposed: Tensor) -> None:
    increase = exact_increase(residual(layer, 0.0), proposed)
    before = kronecker_score(layer)
    for q in range(Q):
        after = kronecker_score(widened(layer, proposed[:, q]))
        torch.testing.assert_close(increase[:, q], after - before, rtol=1e-9, atol=0)


def test_the_cheap_bound_is_one_and_not_always_tight(layer: Layer, proposed: Tensor) -> None:
    for ridge in (0.0, 1e-6, 1e-1):
        of = residual(layer, ridge)
        share = cheap_increase(of, proposed) / exact_increase(of, proposed)
        assert bool((share <= 1 + 1e-9).all())
        assert bool((share < 0.95).all())


def test_the_cheap_bound_is_exact_for_what_is_orthogonal(layer: Layer, proposed: Tensor) -> None:
    read = layer.read.unsqueeze(1)
    inside = torch.linalg.lstsq(read.mT.expand(-1, Q, -1, -1), proposed.mT).solution
    orthogonal = proposed - (read.mT @ inside).mT
    of = residual(layer, 0.0)
    torch.testing.assert_close(cheap_increase(of, orthogonal), exact_increase(of, orthogonal), rtol=1e-9, atol=0)


def test_what_the_layer_reads_already_brings_nothing(layer: Layer, proposed: Tensor) -> None:
    of = residual(layer)
    largest = cheap_increase(of, proposed).amax()
    copied = (normal((K, Q, m, d), "copy") @ layer.read.unsqueeze(1)).contiguous()
    assert float((cheap_increase(of, copied) / largest).abs().max()) < 1e-12
    assert float((exact_increase(of, copied) / largest).abs().max()) < 1e-5
    dead = torch.zeros_like(copied)
    assert float(cheap_increase(of, dead).abs().max()) == 0


def test_neither_depends_on_the_scale_or_basis_of_what_is_proposed(layer: Layer, proposed: Tensor) -> None:
    of = residual(layer, 0.0)
    turned = normal((K, Q, m, m), "turn") @ proposed
    for increase in (cheap_increase, exact_increase):
        torch.testing.assert_close(increase(of, turned), increase(of, proposed), rtol=1e-8, atol=0)


def test_a_negative_ridge_is_refused(layer: Layer) -> None:
    with pytest.raises(ValueError, match="damping = -1 must be at least zero"):
        residual(layer, -1)


def test_a_scale_is_no_kronecker_product() -> None:
    h = torch.zeros(1, 2, 3, 1, 1)
    with pytest.raises(ValueError, match="tap 'norm' of kind 'scale' has no Kronecker factors"):
        kronecker_layer(Tap("norm", "scale", ("w",), h, h), torch.zeros(1, 1, 2, 3, 1, 1), torch.zeros(1, 2))


# ------------------------------------------------------------------------------------------------------ ascent


def test_ascent_finds_the_best_direction() -> None:
    """For linear units on white inputs Δη' of one unit is a Rayleigh quotient: its maximum is an eigenvalue."""
    x = torch.linalg.qr(normal((K, n, d), "x")).Q.mT * n**0.5
    of = Residual(
        normal((K, c, n), "g") / n, torch.eye(c, dtype=torch.float64).expand(K, c, c), torch.eye(1).double(), x, n, 0.0
    )
    start = normal((K, Q, d), "start")

    def objective(weights: Tensor) -> Tensor:
        return cheap_increase(of, (weights @ x).unsqueeze(2))

    cross = of.gradient @ x.mT
    best = torch.linalg.eigvalsh(cross.mT @ cross)[:, -1:]
    weights, value = ascend(objective, start, steps=200)
    torch.testing.assert_close(value, best.expand(K, Q), rtol=1e-3, atol=0)
    torch.testing.assert_close(objective(weights), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(weights.norm(dim=2), start.norm(dim=2), rtol=1e-12, atol=0)
    assert bool((objective(start) < 0.99 * best).all())


def test_ascent_never_loses_and_treats_proposals_one_by_one(layer: Layer) -> None:
    of = residual(layer)
    source = normal((K, 6, n), "source")

    def objective(weights: Tensor) -> Tensor:
        return cheap_increase(of, torch.tanh(weights @ source).unsqueeze(2))

    start = normal((K, Q, 6), "start")
    weights, value = ascend(objective, start, steps=20)
    assert bool((value >= objective(start)).all())
    assert bool((value > 1.05 * objective(start)).any())
    alone, of_alone = ascend(objective, start[:, 1:2], steps=20)
    torch.testing.assert_close(alone, weights[:, 1:2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(of_alone, value[:, 1:2], rtol=1e-9, atol=0)
    hill = normal((6,), "hill")

    def cosine(weights: Tensor) -> Tensor:
        return functional.cosine_similarity(weights, hill.expand_as(weights), dim=2)

    top = hill + 1e-6 * normal((K, Q, 6), "near")  # where every long step leads down
    kept, height = ascend(cosine, top, steps=10)
    assert bool((height >= cosine(top)).all())
    torch.testing.assert_close(cosine(kept), height, rtol=0, atol=1e-15)
    same, unmoved = ascend(objective, start, steps=0)
    torch.testing.assert_close(same, start, rtol=0, atol=0)
    torch.testing.assert_close(unmoved, objective(start), rtol=0, atol=0)
    with pytest.raises(ValueError, match="steps = -1 must not be negative"):
        ascend(objective, start, steps=-1)


@pytest.mark.parametrize(("units", "unit_norm"), [((0, 0, 0), "none"), ((1, 1, 0), "calibrated")])
def test_optimised_filters_score_more_than_random_ones(units: tuple[int, ...], unit_norm: str) -> None:
    architecture = Architecture((1, 8, 8), 4, (2, 2, 2), units, unit_norm, mixed=6, hidden=8)
    net = initial(architecture, [0, 1], dtype=torch.float64)
    x, y = normal((40, 1, 8, 8), "x"), one_hot(40, 4)
    for block in (1, 2, 3):
        found = optimised_filters(net, block, 1, x, y, seeds=[0, 1], proposals=6, steps=10)
        random = [new_filters(net, block, 1, [2 + 2 * q, 3 + 2 * q]) for q in range(8)]
        expanded = [add_channels(net, block, 1, seeds=[0, 1], filters=f).net for f in (found, *random)]
        assert float(change(net, expanded[0], x, train=False).max()) == 0
        gains = score_candidates(net, expanded, x, y, kind="kfac", damping=1e-6)
        gain = gains.expanded - gains.current
        assert bool((gain[0] > gain[1:].median(0).values).all())
    with pytest.raises(ValueError, match="k = 3 channels cannot be chosen among 2 proposals"):
        optimised_filters(net, 1, 3, x, y, seeds=[0, 1], proposals=2)


# --------------------------------------------------------------------------------------------------- additions


def test_additions_that_raise_the_score_least_meet_the_bound() -> None:
    """Ratios just above τ reach λ after the bound's number of additions, and a bound in decimal logarithms is broken."""
    for tau in (1.02, 1.2, 2.0):
        start, most, accepted = 0.26, 0.74, 0
        score = start
        while score * tau * (1 + 1e-9) <= most:
            score, accepted = score * tau * (1 + 1e-9), accepted + 1
        bound = additions_bound(most, start, tau)
        assert accepted <= bound < accepted + 1
        assert tau == 2.0 or accepted > bound / math.log(10)


def test_the_absolute_threshold_bounds_growth_from_nothing() -> None:
    assert additions_bound(1.0, 0.0, 2.0) == math.inf
    assert additions_bound(1.0, 0.0, 2.0, 0.25) == pytest.approx(3)
    assert additions_bound(1.0, 0.5, 2.0, 0.25) == pytest.approx(1)
    assert additions_bound(1.0, 0.9, 2.0, 1.5) == 0
    assert additions_bound(0.0, 0.0, 2.0) == 0
    with pytest.raises(ValueError, match=r"τ = 1\.0 must exceed 1"):
        additions_bound(1.0, 0.5, 1.0)
    with pytest.raises(ValueError, match=r"got η₀ = 2\.0, λ = 1\.0"):
        additions_bound(1.0, 2.0, 2.0)


def test_repeated_additions_to_a_network_stay_below_the_bound() -> None:
    """Neurons with zero outgoing weights, added at fixed parameters while the best of four raises the score enough."""
    x, y = normal((20, 6), "x"), one_hot(20, 3)
    w0, w1 = normal((4, 6), "w0") / 6**0.5, normal((3, 4), "w1") / 2

    def score(incoming: Tensor, outgoing: Tensor) -> tuple[float, float]:
        z = (x @ incoming.T)[None].requires_grad_()
        h = torch.tanh(z)
        f = h @ outgoing.T
        taps = [Tap("hidden", "linear", ("w0",), x[None], z), Tap("readout", "linear", ("w1",), h.detach(), f)]
        return float(expansion_score("euclid", f, taps, y)), float(limit("euclid", f, y))

    start, most = score(w0, w1)
    for tau in (1.02, 1.1, 1.5):
        incoming, outgoing, current, accepted = w0, w1, start, 0
        while True:
            proposals = [torch.cat([incoming, normal((1, 6), "p", accepted, q)]) for q in range(4)]
            wider = torch.cat([outgoing, torch.zeros(3, 1, dtype=torch.float64)], 1)
            best, which = max((score(p, wider)[0], q) for q, p in enumerate(proposals))
            assert best <= most * (1 + 1e-10)
            if best / current <= tau:
                break
            incoming, outgoing, current, accepted = proposals[which], wider, best, accepted + 1
        assert accepted <= additions_bound(most, start, tau)
        assert accepted > 0 or tau > 1.1
