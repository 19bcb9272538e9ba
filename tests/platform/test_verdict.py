"""From cases to a claim's outcome, and the gates, controls and lacking cells that can stand in its way."""

from __future__ import annotations

import math
import subprocess
import sys

import pandas as pd
import pytest
from scipy import stats

from assay.verdict import (
    Bound,
    ControlCase,
    Equality,
    GateCase,
    Slope,
    Verdict,
    assess,
    judge,
)
from tests.platform.planted import NAN, SEED, around, one_row_per_seed, power_law

# Several cases


def cases_of(*slopes: float, sd: float = 0.02, n: int = 8) -> pd.DataFrame:
    return pd.concat([power_law(around(slope, sd, n)).assign(layer=layer) for layer, slope in enumerate(slopes, 1)])


def test_pooling_cannot_hide_opposing_errors() -> None:
    frame = cases_of(0.3, -0.3)
    frame["run"] = frame["seed"] + 100 * frame["layer"]
    assert assess(Slope(0.0, band=0.2), frame, ("run",)).outcome == "supported"
    found = assess(Slope(0.0, band=0.2), frame, ("run",), ("layer",))
    assert [case.outcome for case in found.cases] == ["refuted", "refuted"]
    assert found.outcome == "refuted"


def test_every_case_must_be_supported() -> None:
    found = assess(Slope(0.0), cases_of(0.01, -0.04, 0.02), SEED, ("layer",))
    assert found.outcome == "supported"
    assert found.estimate == found.cases[1]  # the one nearest the edge
    assert found.reason.startswith("3 of 3 cases supported; nearest the edge: layer=2: slope -0.04 (95 % interval")
    assert found.reason.endswith("8 units) is inside [-0.1, 0.1]")


def test_one_undecided_case_leaves_the_claim_open() -> None:
    found = assess(Slope(0.0), cases_of(0.01, 0.1, 0.02), SEED, ("layer",))
    assert found.outcome == "inconclusive"
    assert found.estimate == found.cases[1]
    assert found.reason.startswith("1 of 3 cases undecided; least decided: layer=2: slope 0.1 (95 % interval")
    assert found.reason.endswith("reaches outside [-0.1, 0.1]")


def test_one_refuted_case_refutes_the_claim() -> None:
    found = assess(Slope(0.0), cases_of(0.01, 0.1, 0.3, -0.9), SEED, ("layer",))
    assert found.outcome == "refuted"
    assert found.estimate == found.cases[3]  # the clearest
    assert found.reason.startswith("2 of 4 cases refuted; most clearly: layer=4: slope -0.9 (95 % interval")


def test_the_clearest_refutation_is_reported_not_the_widest() -> None:
    frame = pd.concat([cases_of(0.3, sd=0.01), cases_of(0.35, sd=0.15).assign(layer=2)])
    found = assess(Slope(0.0), frame, SEED, ("layer",))
    narrow, wide = found.cases
    assert (narrow.outcome, wide.outcome) == ("refuted", "refuted")
    assert narrow.low > wide.low
    assert narrow.high < wide.high
    assert found.estimate == narrow


def test_a_case_is_refuted_at_the_level_of_all_cases() -> None:
    sd, n, m = 0.1, 8, 10
    edge = 0.1 + stats.t.ppf(1 - 0.05 / 2, n - 1) * sd / math.sqrt(n)  # just outside by its own 95 % interval
    alone = assess(Slope(0.0), cases_of(edge + 0.001, sd=sd), SEED, ("layer",))
    together = assess(Slope(0.0), cases_of(edge + 0.001, *[0.0] * (m - 1), sd=sd), SEED, ("layer",))
    assert alone.outcome == "refuted"
    assert together.cases[0].outcome == "inconclusive"
    assert together.cases[0].reason.endswith("[-0.1, 0.1], but not at the 99.5 % level that 10 cases call for")
    beyond = 0.1 + stats.t.ppf(1 - 0.05 / m / 2, n - 1) * sd / math.sqrt(n)
    assert assess(Slope(0.0), cases_of(beyond + 0.001, *[0.0] * (m - 1), sd=sd), SEED, ("layer",)).outcome == "refuted"


def test_a_diverged_case_decides_before_a_merely_wide_one() -> None:
    frame = cases_of(0.1, 0.0)
    frame.loc[frame["layer"] == 2, "value"] = NAN
    found = assess(Slope(0.0), frame, SEED, ("layer",))
    assert found.reason == "2 of 2 cases undecided; least decided: layer=2: 32 of 32 rows diverged"


# Verdicts: gates, controls, lacking cells

GOOD, WRONG, WIDE = (one_row_per_seed(around(mean, sd)) for mean, sd in ((0.0, 0.1), (9.0, 0.1), (0.0, 9.0)))
KIND = Equality(1.0)


def verdict_on(frame=GOOD, *, controls=(("wrong law", WRONG, False),), gates=(), **cells: int) -> Verdict:
    return judge(
        "ABC-1", KIND, SEED, (), frame,
        controls=[ControlCase(name, "made false", KIND, data, trivial) for name, data, trivial in controls],
        gates=[GateCase(name, Bound(lower=1.0), SEED, (), data) for name, data in gates],
        **cells,
    )  # fmt: skip


@pytest.mark.parametrize(("frame", "outcome"), [(GOOD, "supported"), (WRONG, "refuted"), (WIDE, "inconclusive")])
def test_verdict_is_the_claims_when_nothing_stands_against_it(frame: pd.DataFrame, outcome: str) -> None:
    found = verdict_on(frame, gates=[("effect", WRONG)])
    assert found.outcome == outcome
    assert found.assessment is not None
    assert found.reason == found.assessment.reason
    assert [(c.name, c.why, c.trivial, c.assessment.outcome) for c in found.controls] == [
        ("wrong law", "made false", False, "refuted")
    ]
    assert [(g.name, g.assessment.outcome) for g in found.gates] == [("effect", "supported")]


@pytest.mark.parametrize("frame", [GOOD, WRONG, WIDE])
@pytest.mark.parametrize("control", [GOOD, WIDE])
def test_a_control_that_is_not_refuted_voids_every_outcome(frame: pd.DataFrame, control: pd.DataFrame) -> None:
    found = verdict_on(frame, controls=[("wrong law", WRONG, False), ("broken method", control, False)])
    assert found.outcome == "void"
    assert found.reason.startswith("control broken method was not refuted: mean difference from the prediction ")
    assert "(95 % interval " in found.reason


def test_a_trivial_control_that_passes_voids() -> None:
    found = verdict_on(controls=[("no training", GOOD, True)])
    assert found.outcome == "void"
    assert found.reason.startswith("passing would mean nothing: trivial control no training is supported too: ")
    for weak in (WRONG, WIDE):
        assert verdict_on(controls=[("no training", weak, True)]).outcome == "supported"


@pytest.mark.parametrize("gate", [GOOD, WIDE])
def test_an_assumption_that_is_not_met_voids_before_any_control(gate: pd.DataFrame) -> None:
    found = verdict_on(gates=[("effect large enough", gate)], controls=[("wrong law", GOOD, False)])
    assert found.outcome == "void"
    assert found.reason.startswith("assumption not met: effect large enough: mean value")


@pytest.mark.parametrize(
    ("failed", "pending", "lacking"),
    [
        (3, 10, "3 of 120 cells failed, 10 not run"),
        (3, 0, "3 of 120 cells failed"),
        (0, 10, "10 of 120 cells not run"),
    ],
)
def test_lacking_cells_forbid_support_but_not_refutation(failed: int, pending: int, lacking: str) -> None:
    cells = {"planned": 120, "failed": failed, "pending": pending}
    good, wrong = verdict_on(GOOD, **cells), verdict_on(WRONG, **cells)
    assert (good.outcome, wrong.outcome) == ("inconclusive", "refuted")
    assert good.reason.startswith(f"{lacking}; what there is supports the claim: ")
    assert wrong.reason.endswith(f" ({lacking})")


def test_lacking_cells_void_nothing_that_they_may_yet_decide() -> None:
    cells = {"planned": 120, "pending": 10}
    empty = GOOD.iloc[:0]
    found = verdict_on(empty, controls=[("wrong law", empty, False)], gates=[("effect", empty)], **cells)
    assert found.outcome == "inconclusive"
    assert found.reason == "10 of 120 cells not run; assumption not met: effect: no rows"
    passed = verdict_on(controls=[("open", empty, False), ("wrong law", GOOD, False)], **cells)
    assert passed.outcome == "void"
    assert passed.reason.startswith("control wrong law was not refuted")


def test_a_claim_that_was_never_measured() -> None:
    found = Verdict.unmeasured("ABC-1", "not measured")
    assert (found.outcome, found.reason, found.assessment) == ("inconclusive", "not measured", None)


def test_errors_say_whose_data_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"claim ABC-1, control 'wrong law': column 'value' is missing"):
        verdict_on(controls=[("wrong law", GOOD[["seed"]], False)])
    with pytest.raises(ValueError, match=r"claim ABC-1, gate 'effect': column 'value' is missing"):
        verdict_on(gates=[("effect", GOOD[["seed"]])])


def test_judging_imports_scipy_only_when_it_judges() -> None:
    code = "import sys, assay.verdict; print('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
