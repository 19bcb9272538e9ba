"""Growing runs of the study `growth`: the claims on planted tables, the trials in one process, and a run that is killed."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from assay import AssayError, Paper, Study, verdict
from assay.plan import Pack, plan
from assay.results import Progress, Tables, judge_claim
from assay.team import Team
from studies.growth.growing import PROTOCOLS, start
from studies.growth.runs import CLASSES, TRIALS, arms
from studies.growth.runs_claims import CLAIMS
from studies.growth.runs_figures import FIGURES, in_order
from studies.growth.runs_frames import (
    BEST,
    DRAWS,
    RUN,
    added,
    coin,
    fair,
    late_coin,
    paired,
    shuffled,
)
from theory.growth.network import parameter_count

study = Study("growth", "Runs", "Runs alone.", (Paper("key", "T", ("A",), 2024),), "1", TRIALS, CLAIMS, FIGURES)
COMPLETE = {trial.name: Progress(1, 1, 0) for trial in study.trials}
SEEDS = range(8)


# Claims on planted tables

START = {classes: parameter_count(start("digits", classes, "none")) for classes in CLASSES}
ADDED = {2: 0, 4: 60, 6: 200, 8: 500, 10: 900}
LEVELS = {
    "grown": 0.90, "twin": 0.90, "small": 0.70, "random": 0.86, "random_size": 0.86, "grown_longer": 0.93,
    "twin_longer": 0.93, "equal_compute": 0.88,
}  # fmt: skip


def planted(data: str = "digits") -> dict[str, pd.DataFrame]:
    """Tables in which every sentence holds, with a level for each seed and noise for each run."""
    dice = np.random.default_rng(0)
    scale = "laptop" if data == "digits" else "cluster"
    level = (0.01 if data == "digits" else 0.002) * dice.normal(size=len(SEEDS))
    found: dict[str, list[dict]] = {name: [] for name in ("final", "epochs", "events", "recoveries", "times")}
    for cell in next(trial for trial in TRIALS if trial.name == "runs").grid(scale):
        if cell["data"] != data:
            continue
        noise, classes, seed, setting = float(cell["noise"]), cell["classes"], cell["seed"], cell["setting"]
        epochs = cell["epochs"]
        first = parameter_count(start(data, classes, cell["unit_norm"]))
        grown = first + (50 if setting == "secnn" else ADDED[classes] * (1 + noise + 0.01 * dice.random()))
        if setting == "always":
            grown = first + 3000
        if data != "digits":
            grown = 60_000 + 1000.0 * dice.integers(0, 9)
        grew = grown > first + 10
        for arm in (*arms(cell), *(("equal_compute",) if "twin" in arms(cell) else ())):
            test = LEVELS[arm] + level[seed] + 0.002 * dice.normal() - 0.01 * noise
            test -= 0.06 if data != "digits" else 0
            size = {"small": first, "random_size": first + 0.97 * (grown - first)}.get(arm, grown)
            trained = {"equal_compute": epochs - 9}.get(arm, epochs * (2 if "longer" in arm else 1))
            found["final"].append(
                cell | {"arm": arm, "parameters": size, "trained": trained, "compute": 1.0, "train_loss": 0.1, "test": test,
                        "best": test, "half": test - 0.15, "first": test - 0.5}
            )  # fmt: skip
            for epoch, held, part in ((1, 0.5, 0.0), (20, 0.72, 0.2), (30, 0.82, 0.5), (epochs, test, 1.0)):
                at = first + (part if arm == "grown" else float(arm == "twin")) * (size - first)
                row = {"arm": arm, "epoch": epoch, "parameters": at, "train_loss": 0.1, "test": held, "held": held}
                found["epochs"].append(cell | row)
        for epoch in range(7, epochs, 6):
            event = "channels" if grew and (setting == "always" or epoch < 20) else "none"
            found["events"].append(
                cell | {"epoch": epoch, "event": event, "block": int(event != "none"), "channels": 2, "parameters": grown,
                        "widths": [2.0], "units": [0.0], "eta": 1.0, "eta_layer": 1.0, "eta_channel": 1.1,
                        "ratio": 2.5 if setting == "secnn" else 1.1, "df_eval": 0.0, "df_train": 0.0}
            )  # fmt: skip
            if event != "none":
                after = 0.7 + 0.002 * dice.normal() + 0.01
                row = {"epoch": epoch, "epochs_after": 6 if data == "digits" else 10, "before": 0.7, "after": after}
                found["recoveries"].append(cell | row | {"box": after - 0.05, "box_now": 0.2, "left": after - 0.005})
        found["times"].append(cell | {"train_s": 2.0, "score_s": 0.3 + 0.01 * dice.random()})
    ranked, dice = [], np.random.default_rng(1)
    for checkpoint in (10, 25):
        for seed in SEEDS:
            added = np.array([38, 38, 39, 40, 39, 31, 80, 78, 62, 160, 156, 124, 320, 312, 248])
            better = dice.permutation(15) * 20.0
            extra = better + 0.25 * added + dice.normal(size=15)
            for index in range(15):
                ranked.append(
                    {"data": "digits", "classes": 10, "checkpoint": checkpoint, "steps": 40, "seed": seed,
                     "candidate": f"{'identity' if index < 3 else 'channels'} {index} +1", "added": added[index],
                     "extra": extra[index], "ggn": extra[index] + 9 * abs(dice.normal()) + 1, "emp_diag": 1.0,
                     "circulating": dice.normal() - 0.03 * extra[index]}
                )  # fmt: skip
    return {name: pd.DataFrame(rows) for name, rows in found.items()} | {"ranking": pd.DataFrame(ranked)}


ON_CIFAR = ("SECNN-11", "SECNN-11P", "SECNN-11K", "SECNN-11PK")
FRAMES = planted()
CIFAR = planted("cifar10")


def tables_of(frames: dict[str, pd.DataFrame]) -> Tables:
    return Tables(study, lambda name: frames[name])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_hold_where_the_sentence_does_and_their_controls_fail(claim):
    found = judge_claim(claim, tables_of(FRAMES), COMPLETE)
    for control in found.controls:
        assert control.assessment.outcome == "refuted", (control.name, control.assessment.reason)
    if claim.id in ON_CIFAR:
        assert found.outcome == "void"
        assert "only the cluster scale reads" in found.reason
        found = judge_claim(claim, tables_of(CIFAR), COMPLETE)
        assert {control.assessment.outcome for control in found.controls} == {"refuted"}
    if claim.id == "SECNN-6":  # the planted box kernel loses 0.04 within the window, so that the claim means something
        trivial = found.controls[-1]
        assert trivial.trivial
    assert found.outcome == "supported", found.reason


def test_where_a_broken_expansion_recovers_too_recovery_means_nothing():
    easy = FRAMES["recoveries"].assign(box=lambda f: f["after"])
    found = judge_claim(study.claim("SECNN-6"), tables_of(FRAMES | {"recoveries": easy}), COMPLETE)
    assert found.outcome == "void"
    assert "box kernel as identity, at the same place and time is supported too" in found.reason


def test_where_a_count_of_parameters_ranks_as_well_the_score_means_nothing():
    counted = FRAMES["ranking"].assign(added=lambda f: 38 + f["extra"].rank(pct=True))
    found = judge_claim(study.claim("SECNN-4b"), tables_of(FRAMES | {"ranking": counted}), COMPLETE)
    assert found.outcome == "void"
    assert "the number of parameters added is supported too" in found.reason


def test_coins_and_orders_vary_over_the_axis():
    """Each unit of the controls has sizes of its own at each x, so that a trend in them would show."""
    tables = tables_of(FRAMES)
    for control in (coin("ggn", "classes"), shuffled("ggn", "classes")):
        frame = control(tables)
        assert (frame.groupby("seed")["value"].nunique() > 1).mean() > 0.9
        assert frame["seed"].nunique() == DRAWS * len(SEEDS)
    sizes = added("ggn", "classes")(tables).groupby("seed")["value"].apply(sorted)
    orders = shuffled("ggn", "classes")(tables).groupby("seed")["value"].apply(sorted)
    for seed, values in orders.items():
        assert values == sizes[seed // DRAWS]
    longer = FRAMES["events"].copy()
    longer.loc[longer["classes"] == 4, "epochs"] = 600
    other = late_coin(tables_of(FRAMES | {"events": longer})).groupby("classes")["value"].mean()
    assert other[2] == late_coin(tables).groupby("classes")["value"].mean()[2]  # each row's own length
    assert other[4] > 2 * other[2]


def moved(table: str, column: str, change: float, **where: object) -> dict[str, pd.DataFrame]:
    """The planted tables with a column changed in some rows."""
    frame = FRAMES[table].copy()
    rows = np.logical_and.reduce([frame[name] == value for name, value in where.items()] or [frame.index >= 0])
    frame.loc[rows, column] += change
    return FRAMES | {table: frame}


FALLING = FRAMES["final"].assign(
    parameters=lambda f: f["parameters"].where(f["arm"] != "grown", 2000 - 90 * f["classes"] - 300 * f["noise"])
)
VIOLATIONS = {
    "SECNN-4b": FRAMES | {"ranking": FRAMES["ranking"].assign(ggn=lambda f: 1 / (1 + f["extra"].abs()))},
    "SECNN-4p": FRAMES
    | {"ranking": FRAMES["ranking"].assign(added=lambda f: f["extra"], ggn=lambda f: f["circulating"])},
    "SECNN-5": FRAMES | {"final": FALLING},
    "SECNN-5M": FRAMES | {"final": FALLING},
    "SECNN-5D": FRAMES | {"final": FALLING},
    "SECNN-5C": moved("final", "parameters", 4000, setting="dense", arm="grown"),
    "SECNN-5P": FRAMES | {"events": FRAMES["events"].assign(event="none")},
    "SECNN-5N": FRAMES | {"final": FALLING},
    "SECNN-5S": FRAMES | {"events": FRAMES["events"].assign(event="channels")},
    "SECNN-6": moved("recoveries", "after", -0.03),
    "SECNN-6L": moved("recoveries", "left", 0.03),
    "SECNN-7": moved("final", "test", 0.03, arm="twin", classes=10),
    "SECNN-7E": moved("final", "test", 0.06, arm="equal_compute"),
    "SECNN-7B": moved("final", "test", 0.03, arm="twin", unit_norm="calibrated"),
    "SECNN-7R": moved("final", "test", 0.03, arm="twin", setting="restart"),
    "SECNN-7D": moved("final", "test", 0.03, arm="twin", setting="dense"),
    "SECNN-7L": moved("final", "test", 0.03, arm="twin_longer"),
    "SECNN-8": moved("final", "test", 0.08, arm="random_size"),
    "SECNN-O": moved("times", "score_s", 0.3, setting="ggn", classes=2),
    "SECNN-OD": moved("times", "score_s", 0.3, setting="dense", classes=10),
    "SECNN-12": FRAMES | {"epochs": FRAMES["epochs"].assign(parameters=lambda f: 9000.0 - f["epoch"])},
}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_violation_refutes_the_claim(claim):
    if claim.id in ON_CIFAR:
        spoiled = CIFAR["final"].assign(best=lambda f: f["best"] - 0.05)
        small = CIFAR["epochs"].assign(parameters=lambda f: f["parameters"] / 5)
        tables = tables_of(CIFAR | {"final": spoiled, "epochs": small})
    else:
        tables = tables_of(VIOLATIONS[claim.id])
    frame = claim.data(tables)
    assert verdict.assess(claim.kind, frame, claim.unit, claim.cases).outcome == "refuted"


def test_the_number_published_is_inside_what_is_claimed():
    declared = study.claim("SECNN-11").kind
    assert abs(BEST - declared.prediction) < declared.tolerance
    assert declared.prediction - declared.tolerance == pytest.approx(0.832)
    assert declared.prediction + declared.tolerance == pytest.approx(0.846)


def test_unequal_budgets_are_refused():
    both = FRAMES["final"].copy()
    both.loc[both["arm"] == "twin", "trained"] *= 2
    with pytest.raises(AssayError, match="unequal budgets, such as 60 epochs beside 120"):
        study.claim("SECNN-7").data(tables_of(FRAMES | {"final": both}))
    with pytest.raises(AssayError, match="unequal budgets"):
        fair(paired(tables_of(FRAMES), "grown", "twin_longer"))


def test_runs_that_never_grew_are_not_compared():
    frame = study.claim("SECNN-7").data(tables_of(FRAMES))
    assert 2 not in set(frame["classes"])
    assert {4, 10} <= set(frame["classes"])


def test_random_growth_of_another_size_is_not_judged():
    small = FRAMES["final"].copy()
    small.loc[small["arm"] == "random_size", "parameters"] *= 0.7
    found = judge_claim(study.claim("SECNN-8"), tables_of(FRAMES | {"final": small}), COMPLETE)
    assert found.outcome == "void"
    assert "0.9 of the parameters" in found.reason


# Trials


def test_nothing_diverges(measured):
    for table in study.tables:
        assert set(measured[table.name]["status"]) == {"ok"}, table.name


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_draws_what_was_planted_and_known_claims(figure):
    assert figure.draw(tables_of(FRAMES)).to_dict()["title"]
    assert figure.claims


def test_numbers_of_classes_are_in_order_and_plain():
    labels = in_order(FRAMES["final"])["task"]
    assert list(labels.cat.categories) == [f"{count} classes" for count in (2, 4, 6, 8, 10)]
    for figure in FIGURES:
        assert "02 classes" not in str(figure.draw(tables_of(FRAMES)).to_dict()), figure.name


def test_nets_grown_at_random_are_drawn_beside_the_twins():
    (figure,) = [one for one in FIGURES if one.name == "protocols"]
    drawn = str(figure.draw(tables_of(FRAMES)).to_dict())
    assert "grown at random, as often" in drawn
    assert "grown at random, as large" in drawn


@pytest.mark.parametrize(
    "figure", [one for one in FIGURES if one.name not in ("noise", "protocols")], ids=lambda one: one.name
)
def test_every_figure_draws_what_was_measured(figure, measured):
    assert figure.draw(measured).to_dict()["title"]


UNMEASURED = ("SECNN-5C", "SECNN-6", "SECNN-6L")
"""Claims on what ten epochs do not show: nets of few classes that have grown, and a whole window after an expansion."""


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_and_control_can_be_judged_on_what_was_measured(claim, measured):
    found = judge_claim(claim, measured, COMPLETE)
    judged = (found.assessment, *(control.assessment for control in found.controls))
    assert all(one.cases for one in judged) == (claim.id not in UNMEASURED)


def test_expansions_keep_the_function_and_every_arm_its_budget(measured):
    events, final = measured["events"], measured["final"]
    assert events["df_eval"].abs().max() == 0
    assert events["df_train"].abs().max() == 0
    assert (events["event"] != "none").any()
    sizes = final.pivot_table(index=RUN, columns="arm", values="parameters")
    assert (sizes["twin"].dropna() == sizes["grown"][sizes["twin"].notna()]).all()
    assert (sizes["random_size"].dropna() <= sizes["grown"][sizes["random_size"].notna()]).all()
    spent = final.pivot_table(index=RUN, columns="arm", values="compute").dropna(subset="twin")
    step = spent["twin"] / final["epochs"].iloc[0]
    assert ((spent["equal_compute"] - spent["grown"]).abs() <= 0.51 * step).all()
    trained = final.pivot_table(index=RUN, columns="arm", values="trained")
    assert (trained[["grown", "twin", "small"]].dropna().nunique(axis=1) == 1).all()
    grown, small = (measured["epochs"].query("arm == @arm") for arm in ("grown", "small"))
    both = grown.merge(small, on=[*RUN, "epoch"])
    both = both[both["epoch"] <= PROTOCOLS["digits"].warm_up]  # the same net until it grows
    assert (both["test_x"] == both["test_y"]).all()


class Kept(Team):
    """A team that stores states as bytes, and dies at the n-th saving."""

    def __init__(self, dies: int | None = None) -> None:
        self.dies, self.saved, self.bytes = dies, 0, b""

    def load(self):
        return torch.load(io.BytesIO(self.bytes), weights_only=True) if self.bytes else None

    def save(self, state):
        written = io.BytesIO()
        torch.save(dict(state), written)
        self.bytes, self.saved = written.getvalue(), self.saved + 1
        if self.saved == self.dies:
            raise KeyboardInterrupt


def smallest(setting: str = "ggn", seed: int = 0) -> Pack:
    packs = [pack for pack in plan(study, "smoke") if pack.trial == "runs"]
    for pack in packs:
        for one in pack.split():
            factors = one.cells[0].factors
            wanted = {"classes": 10, "setting": setting, "unit_norm": "none", "seed": seed}
            if all(factors[name] == value for name, value in wanted.items()):
                return one
    raise AssertionError("no such cell")


@pytest.mark.parametrize("dies", [1, 2, 5])
def test_a_killed_run_goes_on_to_the_same_rows(dies, measured):
    """Killed at a regular saving, before an expansion, and in an arm that follows; Adam starts anew at expansions."""
    team = Kept(dies)
    pack = smallest("restart")
    grew = measured["events"].query("event != 'none'")
    assert (grew[grew["cell"] == pack.cells[0].id]["epoch"] == 7).any()  # between the savings at epochs 5 and 10
    with pytest.raises(KeyboardInterrupt):
        study.run_pack(replace(pack, team=team))
    team.dies = None
    again = study.run_pack(replace(pack, team=team))
    cell = pack.cells[0].id
    for name, frame in again.items():
        if name == "times":
            continue
        whole = measured[name]
        whole = whole[whole["cell"] == cell][list(frame.columns)].reset_index(drop=True)
        pd.testing.assert_frame_equal(frame, whole, check_exact=True, check_dtype=False)


def test_a_cell_is_the_same_alone_and_in_its_pack(measured):
    """Ranked in single precision beside others: the same numbers, or what rounding by another route leaves of them."""
    (pack,) = [pack for pack in plan(study, "smoke") if pack.trial == "ranking"]
    one = pack.split()[1]
    alone = study.run_pack(one)["ranking"]
    frame = measured["ranking"]
    beside = frame[frame["cell"] == one.cells[0].id]
    for column in ("ggn", "emp_diag", "extra"):
        np.testing.assert_allclose(alone[column], beside[column], rtol=2e-3, atol=2e-5)
    assert alone["candidate"].tolist() == beside["candidate"].tolist()
    assert len(alone) == 15
