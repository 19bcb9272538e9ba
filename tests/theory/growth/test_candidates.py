"""Candidates scored together against each scored by itself, and what is no candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from theory.ensemble.seeding import normal, stream
from theory.growth import candidates as module
from theory.growth.candidates import score_candidates
from theory.growth.expand import add_channels, insert_identity
from theory.growth.network import Architecture, GrowingCNN, initial, parameter_count
from theory.growth.scores import KINDS, ROOTED, circulating_score, expansion_score, limit, root

C = 4
SMALL = Architecture((1, 8, 8), C, (2, 3, 2), mixed=4, hidden=5)


def images(n: int) -> Tensor:
    return normal((n, 1, 8, 8), "images")


def classes(n: int) -> Tensor:
    return functional.one_hot(torch.randint(C, (n,), generator=stream("labels", n)), C).double()


def network(
    architecture: Architecture, seeds: tuple[int, ...] = (0, 1), dtype: torch.dtype = torch.float64
) -> GrowingCNN:
    """A network with statistics, scales and shifts as after some training, not as at the start."""
    net = initial(architecture, seeds, dtype=dtype)
    for name, p in net.parameters.items():
        if not name.endswith(".weight"):
            p += 0.2 * torch.stack([normal(p.shape[1:], name, seed, dtype=dtype) for seed in seeds])
    for name, b in net.buffers.items():
        b += torch.stack([normal(b.shape[1:], name, seed, dtype=dtype) for seed in seeds]).abs() * 0.3
    return net


def decision(net: GrowingCNN, x: Tensor, k: int = 2) -> list[GrowingCNN]:
    """All exact expansions of one decision: an identity unit and k channels in every block."""
    blocks = range(1, net.architecture.blocks + 1)
    seeds = range(net.members)
    return [insert_identity(net, block, data=x).net for block in blocks] + [
        add_channels(net, block, k, seeds=seeds).net for block in blocks
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "architecture",
    [
        SMALL,
        replace(SMALL, units=(1, 0, 2), head_norm=2),
        replace(SMALL, units=(2, 1, 1), unit_norm="calibrated", head_norm=1),
        Architecture((2, 9, 11), C, (3, 2), (1, 1), mixed=3, hidden=4),
    ],
    ids=["start", "grown", "calibrated", "odd"],
)
def test_together_is_as_one_at_a_time(kind: str, architecture: Architecture) -> None:
    n = 10
    net, x, y = network(architecture), normal((n, *architecture.image), "images"), classes(n)
    candidates = decision(net, x)
    for damping in (1e-3, 1.0):
        scores = score_candidates(net, candidates, x, y, kind=kind, damping=damping)
        alone = torch.stack([expansion_score(kind, *c.taps(x), y, damping=damping) for c in candidates])
        torch.testing.assert_close(scores.expanded, alone, rtol=1e-8, atol=0)
        current = expansion_score(kind, *net.taps(x), y, damping=damping)
        torch.testing.assert_close(scores.current, current, rtol=1e-8, atol=0)
    before = parameter_count(architecture)
    assert scores.added == tuple(parameter_count(c.architecture) - before for c in candidates)


@pytest.mark.parametrize("kind", ROOTED)
def test_growing_never_lowers_the_score_nor_passes_the_limit(kind: str) -> None:
    net, x, y = network(replace(SMALL, units=(1, 0, 1))), images(24), classes(24)
    scores = score_candidates(net, decision(net, x), x, y, kind=kind, damping=1e-4)
    assert bool((scores.expanded >= scores.current).all())
    assert bool((scores.expanded.amax(0) > scores.current * (1 + 1e-6)).all())
    torch.testing.assert_close(scores.limit, limit(kind, net.forward(x), y))
    assert bool((scores.expanded <= scores.limit * (1 + 1e-10)).all())


@pytest.mark.parametrize("kind", [*ROOTED, "kfac"])
def test_more_channels_score_no_less_than_the_first_of_them(kind: str) -> None:
    net, x, y = network(SMALL), images(24), classes(24)
    for block in (1, 2, 3):
        nested = [add_channels(net, block, k, seeds=(0, 1)).net for k in (1, 2, 4, 8)]
        scores = score_candidates(net, nested, x, y, kind=kind).expanded
        assert bool((scores.diff(dim=0) >= -1e-9 * scores[:-1]).all())


def test_both_ways_of_updating_agree() -> None:
    """Few new parameters per row and many of them are solved in different spaces."""
    net = network(SMALL)
    candidates = [add_channels(net, 1, k, seeds=(0, 1)).net for k in (1, 8)]
    for n in (4, 40):
        x, y = images(n), classes(n)
        scores = score_candidates(net, candidates, x, y)
        alone = torch.stack([expansion_score("ggn", *c.taps(x), y, damping=1e-3) for c in candidates])
        torch.testing.assert_close(scores.expanded, alone, rtol=1e-8, atol=0)


def test_a_member_scores_as_it_does_alone_and_in_single_precision() -> None:
    x, y = images(12), classes(12)
    pair = network(SMALL, (0, 1), torch.float32)
    together = score_candidates(pair, decision(pair, x.float()), x.float(), y.float())
    assert together.expanded.dtype == torch.float64
    for k in (0, 1):
        one = network(SMALL, (k,), torch.float32)
        candidates = [insert_identity(one, b).net for b in (1, 2, 3)]
        candidates += [add_channels(one, b, 2, seeds=(k,)).net for b in (1, 2, 3)]
        alone = score_candidates(one, candidates, x, y)
        torch.testing.assert_close(together.expanded[:, k], alone.expanded[:, 0], rtol=1e-9, atol=0)


def test_calibrated_norms_in_single_precision_are_candidates_too() -> None:
    net, x, y = network(replace(SMALL, unit_norm="calibrated"), dtype=torch.float32), images(12), classes(12)
    candidates = decision(net, x.float())
    scores = score_candidates(net, candidates, x, y)
    alone = [expansion_score("ggn", *c.copy(torch.float64).taps(x), y, damping=1e-3) for c in candidates]
    torch.testing.assert_close(scores.expanded, torch.stack(alone), rtol=1e-4, atol=0)


def test_a_decision_takes_one_backward_pass_and_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"pull_back": 0, "gram": 0}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls[name] += 1
            return function(*args)

        return call

    for name in calls:
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    net, x, y = network(SMALL), images(12), classes(12)
    score_candidates(net, decision(net, x), x, y)
    assert calls == {"pull_back": 1, "gram": 1}


def test_the_circulating_score_falls_where_the_network_grows() -> None:
    net, x, y = network(SMALL), images(24), classes(24)
    wrong = [circulating_score(root("emp_full", *c.taps(x), y).rows) for c in [net, *decision(net, x)]]
    ratios = torch.stack(wrong[1:]) / wrong[0]
    assert float(ratios.min()) < 0.98


def test_kinds_without_a_bound_say_so() -> None:
    net, x, y = network(SMALL), images(6), classes(6)
    for kind in ("emp_diag", "kfac"):
        assert bool(score_candidates(net, decision(net, x), x, y, kind=kind).limit.isnan().all())


def test_what_changes_the_function_is_no_candidate() -> None:
    net, x, y = network(SMALL), images(6), classes(6)
    for wrong in (
        insert_identity(net, 1, "box").net,
        add_channels(net, 1, 1, "outgoing", seeds=(0, 1)).net,
        add_channels(net, 1, 1, "paper", seeds=(0, 1)).net,
        add_channels(net, 3, 2, "misplaced", seeds=(0, 1)).net,
    ):
        with pytest.raises(ValueError, match=r"changes the function, by up to .*: score it as a network of its own"):
            score_candidates(net, [wrong], x, y)
    for part, name in (("parameters", "block1.conv.weight"), ("buffers", "block1.norm.mean")):  # before what grew
        elsewhere = add_channels(net, 3, 1, seeds=(0, 1)).net
        getattr(elsewhere, part)[name] = getattr(elsewhere, part)[name] + 0.1
        with pytest.raises(ValueError, match=r"changes the function, by up to"):
            score_candidates(net, [elsewhere], x, y)
    grown = network(replace(SMALL, units=(1, 0, 0)))
    early = insert_identity(grown, 1).net  # the same function, the new unit before the old one
    for part in ("conv.weight", "slope"):
        first, second = f"block1.unit1.{part}", f"block1.unit2.{part}"
        early.parameters[first], early.parameters[second] = early.parameters[second], early.parameters[first]
    with pytest.raises(ValueError, match=r"the new unit of 'block1\.unit2\.conv' is not at the end of its block"):
        score_candidates(grown, [early], x, y)
    with pytest.raises(ValueError, match="no new parameter with a gradient"):
        score_candidates(net, [net], x, y)
    hidden = add_channels(net, 2, 1, seeds=(0, 1)).net  # outgoing weights that happen to cancel on the data
    hidden.parameters["block2.conv.weight"][:, -1] = 0
    hidden.parameters["block3.conv.weight"][:, :, -1] = 1
    with pytest.raises(ValueError, match=r"weights 'block3\.conv\.weight' from new channels are not zero"):
        score_candidates(net, [hidden], x, y)


def test_refusals() -> None:
    net, x, y = network(SMALL), images(6), classes(6)
    with pytest.raises(ValueError, match="no candidates"):
        score_candidates(net, [], x, y)
    with pytest.raises(ValueError, match="unknown kind 'hessian' of score"):
        score_candidates(net, decision(net, x), x, y, kind="hessian")
    with pytest.raises(ValueError, match=r"damping = 0\.0 must be positive"):
        score_candidates(net, decision(net, x), x, y, damping=0.0)
