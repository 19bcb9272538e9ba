"""Networks at fixed parameters in the growth study: the claims on planted tables, and the trials in one process."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from assay import Paper, Study, verdict
from assay.plan import Cell, Pack, plan
from assay.results import Progress, Tables, judge_claim
from studies.growth import identities_additions
from studies.growth.identities import (
    CHANNELS,
    GAIN_KINDS,
    SCORED,
    TRIALS,
    gradient,
    mean_loss,
    moved,
    names_of,
    solved,
)  # fmt: skip
from studies.growth.identities_additions import ALPHA, LOSSES, PROPOSALS, TAUS
from studies.growth.identities_claims import CLAIMS
from studies.growth.identities_figures import FIGURES
from studies.growth.identities_nets import TRAINED_ON, digits, images, probe, stacked, trained
from studies.growth.identities_preservation import NOISE, NOISES
from theory.datasets import digit_images
from theory.growth.bounds import additions_bound
from theory.growth.scores import root

study = Study("growth", "Identities", "Alone.", (Paper("key", "T", ("A",), 2024),), "1", TRIALS, CLAIMS, FIGURES)
COMPLETE = {trial.name: Progress(1, 1, 0) for trial in study.trials}
NETS = list(product(("start", "grown"), (0, 15), range(5)))
NET = ("shape", "epochs", "seed")


# Data and networks


def test_nobody_is_judged_on_an_image_that_was_trained_on():
    (x, y), (u, v) = digits(3)
    assert (len(x), len(u)) == (TRAINED_ON, 1797 - TRAINED_ON)
    held = digit_images()
    everything = torch.cat([x, u]).flatten(1).numpy()
    np.testing.assert_array_equal(np.sort(everything, 0), np.sort(held.images.reshape(1797, -1) / 8 - 1, 0))
    assert sorted(torch.cat([y, v]).tolist()) == sorted(held.labels.tolist())
    assert not torch.equal(digits(4)[0][1], y)
    first, test = images([3, 4], 20), images([3, 4], 20, test=True)
    assert torch.equal(first[0][0], x[:20])
    assert torch.equal(test[1][0], v[:20])
    assert probe([3], 20)[1].argmax(2).equal(y[None, :20])


def test_a_stack_holds_the_network_of_each_seed():
    widths, units = SCORED["grown"]
    both = stacked(widths, units, "none", 1, [5, 2])
    for k, seed in enumerate((5, 2)):
        alone = trained(widths, units, "none", 1, seed)
        assert trained(widths, units, "none", 1, seed) is alone
        for name, value in alone.parameters.items():
            assert torch.equal(both.parameters[name][k], value[0])
        assert not torch.equal(alone.buffers["block1.norm.mean"], torch.zeros(1, 2))
    start = trained(widths, units, "none", 0, 2)
    assert torch.equal(start.buffers["block1.norm.mean"], torch.zeros(1, 2))


def test_gradient_and_steps_name_parameters_in_the_order_of_a_root():
    net = stacked(*SCORED["grown"], "none", 1, [0, 1]).copy(torch.float64)
    x, y = probe([0, 1], 12)
    f, taps = net.taps(x)
    names = names_of(taps)
    g = gradient(net, names, x, y)
    torch.testing.assert_close(g, root("ggn", f, taps, y).gradient, rtol=1e-9, atol=1e-12)
    v = torch.randn(g.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    up, down = (mean_loss(moved(net, names, h * v), x, y, "xent") for h in (1e-6, -1e-6))
    torch.testing.assert_close((up - down) / 2e-6, (g * v).sum(1), rtol=1e-5, atol=0)
    assert sorted(names) == sorted(net.parameters)


def test_the_solution_is_that_of_the_pseudo_inverse():
    dice = torch.Generator().manual_seed(1)
    rows = torch.randn(2, 9, 4, generator=dice, dtype=torch.float64) @ torch.randn(4, 7, generator=dice).double()
    w = torch.randn(2, 9, generator=dice, dtype=torch.float64)
    F, g = rows.mT @ rows, (rows.mT @ w.unsqueeze(2))
    torch.testing.assert_close(
        solved(rows, w), (torch.linalg.pinv(F, rtol=1e-10) @ g).squeeze(2), rtol=1e-8, atol=1e-10
    )


# Claims


def frame_of(rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows)


def planted() -> dict[str, pd.DataFrame]:
    """Tables in which every sentence holds, with noise between seeds."""
    dice = np.random.default_rng(0)
    changes = {"exact": 0.0, "paper": 1e-2, "box": 30.0, "outgoing": 3.0, "misplaced": 8.0}
    costs = {"exact": 0.0, "paper": 0.0, "box": 0.4, "outgoing": 0.2, "misplaced": 0.6}
    preservation, accuracies, geometry, drops, gains, labels, empirical, additions, cheap = ([] for _ in range(9))
    recipes = [("identity", r) for r in ("exact", "paper", "box")]
    recipes += [("channels", r) for r in ("exact", "paper", "outgoing", "misplaced")]
    for net in NETS:
        own = dict(zip(NET, net, strict=True))
        for unit_norm, (expansion, recipe), block, mode in product(
            ("none", "fresh"), recipes, (1, 2, 3), ("eval", "train")
        ):
            if (recipe == "paper") > (unit_norm == "fresh"):
                continue
            row = own | {"unit_norm": unit_norm, "expansion": expansion, "recipe": recipe, "block": block, "mode": mode}
            change = changes[recipe] * (30 if mode == "train" else 1)
            preservation += [
                row | {"precision": precision, "change": change, "size": 9.0} for precision in ("float32", "float64")
            ]
            before = 0.8 + 0.02 * dice.normal()
            noises = NOISES if (expansion, recipe) == ("identity", "paper") else (NOISE,)
            for noise in noises:
                after = before - costs[recipe] - 0.2 * (noise > 0.05) + 0.002 * dice.normal()
                accuracies.append(row | {"noise": noise, "before": before, "after": after})
        for kind in ("euclid", "ggn"):
            eta = (0.2 if kind == "euclid" else 3.0) * np.exp(0.3 * dice.normal())
            geometry.append(
                own | {"kind": kind, "eta": eta * (1 + 1e-11), "projection": eta, "ceiling": 2 * eta,
                       "descent": eta * (1 + 1e-6), "plain_descent": 20 * eta, "diagonal": 3 * eta,
                       "empirical": 0.4 * eta, "emp_diag": 12.0}
            )  # fmt: skip
        drops += [own | {"moving": "readout", "eta": 3.0, "drop": 1.5}]
        drops += [own | {"moving": "network", "eta": 3.0, "drop": -1e9}]
        for kind, block in product(GAIN_KINDS, (1, 2, 3)):
            for (expansion, recipe), k in [
                *product([("identity", "exact"), ("identity", "box")], (0,)),
                *product([("channels", "exact"), ("channels", "outgoing")], CHANNELS),
            ]:
                rise = 0.01 * (1 + k) * np.exp(0.01 * dice.normal())
                if recipe != "exact" or kind == "circulating":
                    rise = 0.2 * dice.normal()
                gains.append(
                    own | {"kind": kind, "expansion": expansion, "recipe": recipe, "block": block, "channels": k,
                           "before": 2.0, "after": 2.0 * (1 + rise)}
                )  # fmt: skip
        for kind, arm in product(("circulating", "emp_full"), ("true", "permuted", "permuted again")):
            score = 1.0 if kind == "emp_full" else 0.7 + 0.1 * (arm != "true") + 0.005 * dice.normal()
            labels.append(own | {"labels": arm, "kind": kind, "score": score})
        empirical.append(own | {"parameters_of": "network", "eta": 1.0 - 1e-14, "parameters": 588, "images": 96})
        empirical.append(own | {"parameters_of": "readout", "eta": 0.8, "parameters": 210, "images": 400})
        for (block, reader), k, proposal in product(((1, "block2.conv"), (3, "mixed")), (1, 2, 4), range(3)):
            cheap.append(
                own | {"proposal": proposal, "block": block, "reader": reader, "channels": k, "cheap": 0.6,
                       "increase": 1.0, "unprojected": 1.4}
            )  # fmt: skip
    for kind, steps, tau, seed in product(LOSSES, (0, 100), TAUS, range(5)):
        eta, ceiling = (12.0, 1.0) if kind == "emp_diag" else (0.25, 0.72)
        bounds = [additions_bound(max(ceiling, eta), eta, tau), additions_bound(ceiling, 0.0, tau, ALPHA)]
        taken = 20 if kind == "emp_diag" else math.floor(0.7 * bounds[0])
        additions.append(
            {"kind": kind, "steps": steps, "rule": "best", "tau": tau, "seed": seed, "additions": taken,
             "additions_alpha": taken, "bound": bounds[0], "bound_alpha": bounds[1], "eta": eta, "last": 0.5,
             "ceiling": ceiling}
        )  # fmt: skip
    tables = {"preservation": preservation, "accuracies": accuracies, "geometry": geometry, "quadratic": drops,
              "gains": gains, "relabelled": labels, "empirical": empirical, "additions": additions, "cheap": cheap}  # fmt: skip
    return {name: frame_of(rows) for name, rows in tables.items()}


FRAMES = planted()


def tables_of(frames: dict[str, pd.DataFrame]) -> Tables:
    return Tables(study, lambda name: frames[name])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_hold_where_the_sentence_does_and_their_controls_fail(claim):
    found = judge_claim(claim, tables_of(FRAMES), COMPLETE)
    assert found.outcome == "supported", found.reason
    outcomes = [control.assessment.outcome for control in found.controls]
    assert outcomes == ["refuted"] * len(claim.controls), [control.assessment.reason for control in found.controls]


def spoilt(table: str, column: str, value: float, **where: object) -> dict[str, pd.DataFrame]:
    """The planted tables with a column changed in the rows that `where` names."""
    frame = FRAMES[table].copy()
    rows = pd.Series(True, index=frame.index)
    for name, wanted in where.items():
        rows &= frame[name] == wanted
    assert rows.any()
    frame[column] = frame[column].astype(float)
    frame.loc[rows, column] += value
    return FRAMES | {table: frame}


ONE = {"shape": "grown", "epochs": 15, "seed": 3}
VIOLATIONS = {
    "SECNN-1": spoilt(
        "preservation", "change", 1e-10, **ONE, recipe="exact", precision="float64", unit_norm="none",
        expansion="channels", block=2, mode="train",
    ),
    "SECNN-1p": spoilt("accuracies", "after", -0.03, recipe="paper", mode="eval", expansion="identity", noise=NOISE),
    "SECNN-1pT": spoilt("accuracies", "after", -0.03, recipe="paper", mode="train", expansion="identity", noise=NOISE),
    "SECNN-2": spoilt("geometry", "eta", 1e-6, **ONE, kind="ggn"),
    "SECNN-2B": spoilt("geometry", "eta", 1.0, **ONE, kind="euclid"),
    "SECNN-2E": spoilt("empirical", "eta", -1e-3, **ONE, parameters_of="network"),
    "SECNN-3": spoilt(
        "gains", "after", -0.1, **ONE, kind="emp_diag", recipe="exact", expansion="identity", block=2
    ),
    "SECNN-3N": spoilt("gains", "after", -0.05, **ONE, kind="kfac", recipe="exact", block=1, channels=4),
    "SECNN-3C": spoilt("relabelled", "score", 0.12, kind="circulating", labels="true"),
    "SECNN-4a": spoilt("geometry", "descent", 0.01, **ONE, kind="ggn"),
    "SECNN-4q": spoilt("quadratic", "drop", 0.01, **ONE, moving="readout"),
    "SECNN-9": spoilt("additions", "additions", 20, kind="ggn", steps=100, tau=1.2, seed=1),
    "SECNN-10": spoilt("cheap", "cheap", 0.5, **ONE, reader="mixed", channels=1),
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_violation_refutes_the_claim(claim):
    frame = claim.data(tables_of(VIOLATIONS[claim.id]))
    assert verdict.assess(claim.kind, frame, claim.unit, claim.cases).outcome == "refuted"


def test_networks_that_have_learnt_nothing_lose_no_accuracy_and_prove_nothing():
    frames = spoilt("accuracies", "before", -0.4, epochs=15)
    for claim in ("SECNN-1p", "SECNN-1pT"):
        found = judge_claim(study.claim(claim), tables_of(frames), COMPLETE)
        assert found.outcome == "void"
        assert "accuracy of 0.5" in found.reason


def test_accuracy_and_labels_are_judged_after_training():
    frames = spoilt("accuracies", "after", -0.5, epochs=0) | {
        "relabelled": spoilt("relabelled", "score", 0.5, epochs=0, labels="true")["relabelled"]
    }
    for claim in ("SECNN-1p", "SECNN-1pT", "SECNN-3C"):
        found = judge_claim(study.claim(claim), tables_of(frames), COMPLETE)
        assert found.outcome == "supported"


def test_changes_below_an_output_of_one_are_not_relative():
    claim = study.claim("SECNN-1")
    frame = FRAMES["preservation"].assign(size=0.01)
    exact = (frame["recipe"] == "exact") & (frame["precision"] == "float32")
    for change, outcome in ((9e-7, "supported"), (2e-6, "refuted")):
        frame.loc[exact, "change"] = change
        assert judge_claim(claim, tables_of(FRAMES | {"preservation": frame}), COMPLETE).outcome == outcome


# Trials


def test_nothing_diverges(measured):
    for table in study.tables:
        assert set(measured[table.name]["status"]) == {"ok"}, table.name


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_draws_what_was_measured(figure, measured):
    assert figure.draw(measured).to_dict()["title"]
    assert figure.claims


EXACT = (
    "SECNN-1",
    "SECNN-2",
    "SECNN-2B",
    "SECNN-2E",
    "SECNN-3",
    "SECNN-3N",
    "SECNN-4a",
    "SECNN-4q",
    "SECNN-9",
    "SECNN-10",
)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_and_control_can_be_judged_on_what_was_measured(claim, measured):
    """Identities hold at every scale; whether a control is told from them can need more cells."""
    found = judge_claim(claim, measured, COMPLETE)
    assert all(one.cases for one in (found.assessment, *(control.assessment for control in found.controls)))
    if claim.id in EXACT:
        assert found.assessment.outcome == "supported", found.assessment.reason
    if claim.id == "SECNN-1":
        assert found.outcome == "supported", found.reason


def test_an_exact_expansion_changes_not_a_bit(measured):
    frame = measured["preservation"]
    exact = frame["recipe"] == "exact"
    assert frame.loc[exact, "change"].eq(0).all()
    assert frame.loc[~exact, "change"].gt(0).all()
    assert set(frame.loc[exact, "unit_norm"]) == {"none", "calibrated", "fresh"}
    assert set(frame.loc[exact & (frame["expansion"] == "identity"), "unit_norm"]) == {"none", "calibrated"}
    accuracy = measured["accuracies"]
    kept = accuracy["recipe"] == "exact"
    np.testing.assert_allclose(accuracy.loc[kept, "after"], accuracy.loc[kept, "before"], atol=1 / 32 + 1e-9)


TOLERANCES = {"preservation": {"rtol": 1e-3, "atol": 1e-6}, "accuracies": {"atol": 1 / 32 + 1e-9}}


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_a_cell_is_the_same_alone_and_in_its_pack(trial, measured):
    """In double precision to 1e-9; slopes are differences, and networks in single precision are rounded."""
    (pack, *_) = [pack for pack in plan(study, "smoke") if pack.trial == trial.name and len(pack) > 1]
    alone = pack.split()[-1]
    for name, frame in study.run_pack(alone).items():
        beside = measured[name]
        beside = beside[beside["cell"] == alone.cells[0].id]
        assert len(beside) == len(frame)
        for column in frame.select_dtypes("number"):
            if column in ("descent", "plain_descent", "drop"):
                tolerance = {"rtol": 1e-3}
            else:
                tolerance = TOLERANCES.get(name, {"rtol": 1e-9, "atol": 1e-12})
            np.testing.assert_allclose(frame[column], beside[column], err_msg=f"{name}.{column}", **tolerance)


def test_every_scale_can_be_planned_and_costs_something():
    for scale in ("smoke", "laptop", "cluster"):
        packs = plan(study, scale)
        assert {pack.trial for pack in packs} == {trial.name for trial in TRIALS}
        assert all(pack.expected_s > 0 and pack.expected_bytes > 0 for pack in packs)
    rules = {(c.factors["rule"], c.factors["tau"]) for p in packs if p.trial == "additions" for c in p.cells}
    assert {tau for rule, tau in rules if rule == "least"} == {1.01, 1.02, 1.05}


# Additions


def test_the_rules_take_what_passes_and_differ_in_which():
    scores = [1.2, 1.3, 1.0999, 1.1001]
    taken = {rule: identities_additions._chosen(1.0, scores, 1.1, rule) for rule in PROPOSALS}
    assert taken == {"best": 1, "least": 3}
    assert identities_additions._chosen(1.0, scores, 1.3, "best") is None


def test_additions_raise_the_score_by_more_than_the_threshold_each_and_are_counted():
    cells = tuple(
        Cell(f"{rule}-{seed}", {"kind": "ggn", "steps": 30, "rule": rule, "tau": 1.05, "seed": seed})
        for rule in PROPOSALS
        for seed in (0, 1)
    )
    frame = study.trial("additions").run(Pack("growth", "additions", "laptop", cells))
    assert (frame["last"] >= frame["eta"] * 1.05 ** frame["additions"]).all()
    assert (frame["last"] <= frame["ceiling"]).all()
    assert (frame["additions"] > 0).any()
    assert (frame["additions_alpha"] <= frame["additions"]).all()
    by_ratio = np.log(frame["ceiling"] / frame["eta"]) / np.log(1.05)
    np.testing.assert_allclose(frame["bound"], by_ratio, rtol=1e-12)
    np.testing.assert_allclose(frame["bound_alpha"], 1 + np.log(frame["ceiling"] / ALPHA) / np.log(1.05), rtol=1e-12)
    assert list(frame["eta"][:2]) == pytest.approx(list(frame["eta"][2:]), rel=1e-9)


def test_additions_with_a_gain_end_at_the_first_that_gains_too_little():
    path = [1.0, 1.0 + 2 * ALPHA, 1.0 + 3.5 * ALPHA, 1.0 + 4 * ALPHA, 2.0]
    assert identities_additions._before_small_gain(path) == 2
    assert identities_additions._before_small_gain(path[:2]) == 1
    assert identities_additions._before_small_gain(path[:1]) == 0
