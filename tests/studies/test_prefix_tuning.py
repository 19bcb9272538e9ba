"""Fine-tuning arms of the prefix study: the claims on planted tables, and the trials in one process."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from assay import Paper, Study, verdict
from assay.plan import Pack, plan
from assay.results import Progress, Tables, judge_claim
from studies.prefix.arms import ARMS
from studies.prefix.tuning import BACKBONE_ARMS, DIGIT_ARMS, LARGE_RATES, RATES, TRIALS, adapter_of, digits, pretrained
from studies.prefix.tuning_claims import CLAIMS, chosen, equal, longest_prefix
from studies.prefix.tuning_figures import FIGURES
from theory.datasets import digit_images
from theory.ntk_attention.vit import Adapter, Architecture, StackedViT, first_values

study = Study(
    "prefix", "Tuning", "Tuning alone.", (Paper("key", "T", ("A",), 2024),), "1", TRIALS, CLAIMS, FIGURES
)  # fmt: skip
COMPLETE = {trial.name: Progress(1, 1, 0) for trial in study.trials}
SEEDS = range(10)
SHAPE = Architecture()
DIGITS = {"layers": SHAPE.layers, "heads": SHAPE.heads, "d": SHAPE.head_dim, "width": SHAPE.d, "weights": SHAPE.weights}


# Arms


def test_parameters_are_what_the_arm_trains():
    head = (SHAPE.d + 1) * SHAPE.classes
    for name in DIGIT_ARMS:
        arm = ARMS[name]
        row = first_values(SHAPE, adapter_of(arm), [0])
        assert arm.parameters(**DIGITS) == row.numel() - head, name
    sizes = {name: ARMS[name].parameters(**DIGITS) for name in ("ntk", "prefix-8", "lora-4", "head", "ntk-frozen")}
    assert sizes == {"ntk": 1088, "prefix-8": 1024, "lora-4": 1024, "head": 0, "ntk-frozen": 0}


def test_parameters_of_a_large_vision_transformer():
    """Twelve layers of twelve heads of dimension 64: d² + d numbers a head; half as many prefix rows as d, and one half."""
    large = {"layers": 12, "heads": 12, "d": 64, "width": 768}
    assert ARMS["ntk"].parameters(**large) == 12 * 12 * (64**2 + 64) == 599_040
    assert ARMS["prefix-200"].parameters(**large) == 12 * 2 * 200 * 768
    assert ARMS["lora-8"].parameters(**large) == 12 * 2 * 8 * 2 * 768
    sizes = {arm: ARMS[arm].parameters(**large, weights=86_000_000) for arm in BACKBONE_ARMS}
    frame = pd.DataFrame({"backbone": "vit", "arm": list(sizes), "parameters": list(sizes.values())})
    assert equal(frame, "prefix") == {"vit": "prefix-32"}
    assert equal(frame, "lora") == {"vit": "lora-16"}
    assert longest_prefix(frame) == {"vit": "prefix-200"}


def test_every_arm_has_its_name_and_every_scale_its_arms():
    assert all(name == arm.name for name, arm in ARMS.items())
    assert set(DIGIT_ARMS) | set(BACKBONE_ARMS) == set(ARMS)
    for scale, arms in (("smoke", DIGIT_ARMS), ("laptop", DIGIT_ARMS), ("cluster", BACKBONE_ARMS)):
        packs = plan(study, scale)
        assert {pack["arm"] for pack in packs if pack.trial == "tuning"} == set(arms)
        assert all(pack.expected_s > 0 and pack.expected_bytes > 0 for pack in packs)
    cells = [cell for pack in plan(study, "laptop") if pack.trial == "tuning" for cell in pack.cells]
    grids = {(cell.factors["arm"], cell.factors["steps"], cell.factors["seed"]) for cell in cells}
    assert len(cells) == len(RATES) * len(grids) == len(RATES) * 2 * len(SEEDS) * len(DIGIT_ARMS)


def test_large_networks_try_what_digits_try_and_smaller_steps_too():
    assert set(LARGE_RATES) > {1e-3, 1e-2, 1e-1, 3e-1, 1.0, 3.0}
    assert max(LARGE_RATES) == max(RATES)
    assert min(LARGE_RATES) < min(RATES)


# Data


def test_nobody_is_tested_on_an_image_that_was_trained_on():
    held = digit_images().images[:, 0].astype(float) / 8 - 1
    parts = digits(3)
    assert {name: len(x) for name, (x, _) in parts.items()} == {
        "known": 1000, "unseen": 797, "train": 300, "validation": 200, "test": 797,
    }  # fmt: skip
    known, unseen = parts["known"][0].view(-1, 8, 8), parts["unseen"][0].view(-1, 8, 8)
    together = torch.cat([known, unseen]).double().numpy()
    assert np.array_equal(np.sort(together.reshape(1797, -1), 0), np.sort(held.reshape(1797, -1), 0))
    adapted_to = torch.cat([parts["train"][0], parts["validation"][0]]).view(-1, 8, 8)
    assert torch.equal(adapted_to, -known[:500].mT)
    assert torch.equal(parts["test"][0].view(-1, 8, 8), -unseen.mT)
    assert torch.equal(parts["test"][1], parts["unseen"][1])
    assert not torch.equal(digits(4)["known"][1], parts["known"][1])


# Claims

LEVELS = {
    "head": 0.45, "full": 0.81, "lora-4": 0.795, "prefix-2": 0.60, "prefix-8": 0.70, "prefix-64": 0.79, "ntk": 0.80,
    "ntk-zeros": 0.75, "ntk-shuffled": 0.10,
}  # fmt: skip


def planted() -> dict[str, pd.DataFrame]:
    """Tables in which every sentence holds, with a level for each seed and noise for each run."""
    dice = np.random.default_rng(0)
    level = 0.02 * dice.normal(size=len(SEEDS))
    rows, heads = [], {}
    for arm in DIGIT_ARMS:
        for steps in (150, 600):
            for seed in SEEDS:
                for lr in RATES:
                    far = 0.05 * abs(np.log10(lr / 3e-2))
                    test = LEVELS.get(arm, 0) * (0.8 if steps == 150 else 1) + level[seed] - far + 0.004 * dice.normal()
                    if arm == "head":
                        heads[steps, seed, lr] = test
                    kappa = {"ntk": 0.4, "ntk-shuffled": 0.3}.get(arm, 0.0)
                    test = heads[steps, seed, lr] if arm == "ntk-frozen" else test
                    rows.append(
                        {"backbone": "digits", "arm": arm, "steps": steps, "seed": seed, "lr": lr, "first_loss": 3.0,
                         "train_loss": 1 - test / 2, "validation": np.round(test, 3), "test": test,
                         "parameters": ARMS[arm].parameters(**DIGITS), "largest_kappa": kappa}
                    )  # fmt: skip
    before = [{"seed": seed, "clean": 0.9, "zero_shot": 0.1 + level[seed]} for seed in SEEDS]
    return {"tuning": pd.DataFrame(rows), "pretraining": pd.DataFrame(before)}


FRAMES = planted()


def tables_of(frames: dict[str, pd.DataFrame]) -> Tables:
    return Tables(study, lambda name: frames[name])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_hold_where_the_sentence_does_and_their_controls_fail(claim):
    found = judge_claim(claim, tables_of(FRAMES), COMPLETE)
    assert found.outcome == "supported", found.reason
    refuted = [control.assessment.outcome for control in found.controls]
    assert refuted == ["refuted"] * len(claim.controls), [control.assessment.reason for control in found.controls]


def moved(arm: str, column: str, change: float) -> dict[str, pd.DataFrame]:
    """The planted tables with one arm's column changed."""
    frame = FRAMES["tuning"].copy()
    frame.loc[frame["arm"] == arm, column] += change
    return FRAMES | {"tuning": frame}


VIOLATIONS = {
    "NTK-8P": moved("prefix-8", "test", 0.12),
    "NTK-8PL": moved("prefix-64", "test", 0.06),
    "NTK-8L": moved("lora-4", "test", 0.05),
    "NTK-8F": moved("full", "test", 0.05),
    "NTK-8H": moved("head", "test", 0.36),
    "NTK-8I": moved("ntk-frozen", "test", 1e-9),
    "NTK-8Z": moved("ntk-zeros", "largest_kappa", 1e-12),
    "NTK-8ZA": moved("ntk-zeros", "test", 0.07),
}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_violation_refutes_the_claim(claim):
    frame = claim.data(tables_of(VIOLATIONS[claim.id]))
    assert verdict.assess(claim.kind, frame, claim.unit, claim.cases).outcome == "refuted"


@pytest.mark.parametrize("claim", ["NTK-8P", "NTK-8PL", "NTK-8L", "NTK-8F", "NTK-8ZA"])
def test_a_small_difference_between_noisy_seeds_decides_nothing(claim):
    """Orderings only where the interval excludes what they exclude."""
    declared, dice = study.claim(claim), np.random.default_rng(1)
    frame = declared.data(tables_of(FRAMES))
    shift = -0.02 if claim in ("NTK-8PL", "NTK-8L", "NTK-8F") else 0.0
    frame["value"] = frame["reference"] + shift + 0.05 * (lambda z: z - z.mean())(dice.normal(size=len(frame)))
    assert verdict.assess(declared.kind, frame, declared.unit, declared.cases).outcome == "inconclusive"


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("clean", 0.5, "pre-training on digits"), ("zero_shot", 0.7, "leaves a task")],
)
def test_without_pre_training_or_without_a_task_there_is_no_verdict(column, value, reason):
    spoiled = FRAMES | {"pretraining": FRAMES["pretraining"].assign(**{column: value + 0.01 * np.arange(10)})}
    for claim in CLAIMS:
        found = judge_claim(claim, tables_of(spoiled), COMPLETE)
        assert found.outcome == ("void" if claim.gates else "supported")
        assert not claim.gates or reason in found.reason


def test_where_the_head_is_enough_arms_are_not_compared():
    found = judge_claim(study.claim("NTK-8L"), tables_of(moved("head", "test", 0.35)), COMPLETE)
    assert found.outcome == "void"
    assert "something to tell arms apart by" in found.reason


def test_the_rate_is_chosen_by_validation_alone_and_the_smaller_of_equals():
    found = chosen(tables_of(FRAMES))
    assert len(found) == len(DIGIT_ARMS) * 2 * len(SEEDS)
    assert found["lr"].eq(3e-2).mean() > 0.9
    other = FRAMES["tuning"].assign(validation=lambda frame: -frame["lr"])
    assert set(chosen(tables_of(FRAMES | {"tuning": other}))["lr"]) == {1e-3}
    ties = FRAMES["tuning"].assign(validation=lambda frame: (frame["lr"] > 2e-3).astype(float))
    assert set(chosen(tables_of(FRAMES | {"tuning": ties.sample(frac=1, random_state=0)}))["lr"]) == {3e-3}
    best = FRAMES["tuning"].assign(test=lambda frame: 1 - frame["validation"])
    assert chosen(tables_of(FRAMES | {"tuning": best}))["lr"].equals(found["lr"])


def test_only_the_longest_training_is_judged():
    frame = FRAMES["tuning"]
    other = FRAMES | {"tuning": frame.assign(test=frame["test"].where(frame["steps"] == 600, 0.0))}
    for claim in CLAIMS:
        if claim.gates:
            pd.testing.assert_frame_equal(claim.data(tables_of(other)), claim.data(tables_of(FRAMES)))


# Trials


def test_nothing_diverges(measured):
    for table in study.tables:
        assert set(measured[table.name]["status"]) == {"ok"}, table.name


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_draws_what_was_measured(figure, measured):
    assert figure.draw(measured).to_dict()["title"]
    assert figure.claims


def test_figures_show_arms_and_not_controls(measured):
    for figure in FIGURES:
        drawn = str(figure.draw(measured).to_dict())
        assert "NTK-attention" in drawn
        assert ("published start" in drawn) == (figure.name == "tuning_rates")
        assert "frozen" not in drawn
        assert "shuffled" not in drawn


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_and_control_can_be_judged_on_what_was_measured(claim, measured):
    found = judge_claim(claim, measured, COMPLETE)
    assert all(one.cases for one in (found.assessment, *(control.assessment for control in found.controls)))
    if claim.id in ("NTK-8I", "NTK-8Z"):  # identities hold at every scale
        assert found.outcome == "supported", found.reason


def test_pre_training_succeeds_and_leaves_a_task(measured):
    assert (measured["pretraining"]["clean"] > 0.85).all()
    assert (measured["pretraining"]["zero_shot"] < 0.3).all()


def test_what_was_measured_is_what_the_arms_are(measured):
    frame = measured["tuning"].set_index(["arm", "seed", "lr"]).sort_index()
    for seed in (0, 1):
        first = frame["first_loss"].xs((seed, 1e-2), level=("seed", "lr"))
        starts = first[["head", "full", "lora-4", "ntk-zeros", "ntk-frozen"]]  # these begin at the pre-trained network
        np.testing.assert_allclose(starts, first["head"], rtol=1e-5)
        assert abs(first["ntk"] / first["head"] - 1) < 0.05
        assert abs(first["ntk-shuffled"] / first["ntk"] - 1) > 1e-4  # the same network, other labels
        assert abs(first["prefix-8"] / first["head"] - 1) > 1e-3
    assert frame.loc["ntk", "largest_kappa"].gt(np.log1p(np.exp(-4.0))).all()
    assert frame.drop(index=["ntk", "ntk-shuffled"], level="arm")["largest_kappa"].eq(0).all()
    best = frame["train_loss"].groupby(level=["arm", "seed"]).min()
    assert (best < frame["first_loss"].groupby(level=["arm", "seed"]).first()).all()


@pytest.mark.parametrize("arm", ["full", "ntk"])
def test_a_cell_is_the_same_alone_and_in_its_pack(arm, measured):
    """In single precision, and after training: the same numbers, or what rounding by another route leaves of them."""
    cells = [pack for pack in plan(study, "smoke") if pack.trial == "tuning" and pack["arm"] == arm]
    cell = cells[0].split()[2]
    (alone,) = study.run_pack(cell).values()
    frame = measured["tuning"]
    beside = frame[frame["cell"] == cell.cells[0].id]
    for column in ("first_loss", "train_loss", "largest_kappa"):
        np.testing.assert_allclose(alone[column], beside[column], rtol=1e-5)
    for column in ("validation", "test"):
        np.testing.assert_allclose(alone[column], beside[column], atol=0.006)


def test_a_network_is_pre_trained_once_for_each_seed_and_arms_begin_there(measured):
    assert pretrained(1) is pretrained(1)
    frame = measured["tuning"]
    for seed in (0, 1):
        network = StackedViT(SHAPE, Adapter("full"), None, pretrained(seed))
        loss, _ = network.judged(*(part.unsqueeze(0) for part in digits(seed)["train"]))
        starts = frame.loc[(frame["seed"] == seed) & (frame["arm"] == "head"), "first_loss"]
        np.testing.assert_allclose(starts, float(loss), rtol=1e-5)


def test_other_backbones_are_measured_by_their_own_function(monkeypatch):
    import sys
    import types

    asked: list[Pack] = []
    module = types.ModuleType("studies.prefix.backbones")
    monkeypatch.setattr(module, "measure", lambda pack: asked.append(pack) or pd.DataFrame(), raising=False)
    monkeypatch.setitem(sys.modules, "studies.prefix.backbones", module)
    monkeypatch.setattr("studies.prefix.backbones", module, raising=False)
    (pack, *_) = [pack for pack in plan(study, "cluster") if pack.trial == "tuning"]
    study.trial("tuning").run(pack)
    assert asked == [pack]
