"""Declarations: every mistake is told when it is made, in one line that names the culprit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from assay import AssayError, Claim, Control, Factor, Figure, Gate, Paper, Slope, Study, Table, Trial
from assay.errors import unknown
from assay.plan import Pack, cells, plan
from assay.rows import complete_rows, schema
from assay.study import SCALES

WIDTHS = Factor("width", (1, 2))
SEEDS = Factor("seed", (0, 1, 2), packed=True)
LOSSES = Table("losses", {"loss": float})
PAPER = Paper("doe2020", "On widths", ("J. Doe", "R. Roe"), 2020, venue="ICML", arxiv="2001.00001")
CONTROLS = (Control("flat", kind=Slope(0.0)), Control("steep", kind=Slope(-2.0)))


def measure(pack: Pack) -> pd.DataFrame:
    return pack.frame(loss=np.full(len(pack), 1.0 / pack["width"]))


def read(tables: Any) -> pd.DataFrame:
    return tables["losses"]


def trial(**changes: Any) -> Trial:
    return Trial(**{"name": "train", "factors": (WIDTHS, SEEDS), "tables": (LOSSES,), "run": measure} | changes)


def claim(**changes: Any) -> Claim:
    fields = {"id": "W-1", "statement": "It falls", "source": "Thm 1", "kind": Slope(-1.0), "data": read}
    return Claim(**fields | {"controls": CONTROLS} | changes)


def study(**changes: Any) -> Study:
    fields = {"name": "toy", "title": "T", "summary": "S", "papers": (PAPER,), "version": "1"}
    return Study(**fields | {"trials": (trial(),), "claims": (claim(),)} | changes)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Factor("Width", (1,)), "factor name 'Width' must be lower-case"),
    (lambda: Factor(3, (1,)), "factor name 3 must be lower-case"),  # type: ignore[arg-type]
    (lambda: Factor("cell", (1,)), "factor name 'cell' is a column of the engine"),
    (lambda: Factor("width", ()), "factor 'width' at scale 'smoke' needs a non-empty tuple"),
    (lambda: Factor("width", [1, 2]), "needs a non-empty tuple of values, found [1, 2]"),  # type: ignore[arg-type]
    (lambda: Factor("width", (1, 2.0)), "must all be bool, int, float or str and of one type, found float, int"),
    (lambda: Factor("width", (1, True)), "of one type, found bool, int"),
    (lambda: Factor("width", (None,)), "found NoneType"),  # type: ignore[arg-type]
    (lambda: Factor("width", (np.float64(1),)), "found float64"),
    (lambda: Factor("width", (1, 1)), "factor 'width' at scale 'smoke' repeats a value: (1, 1)"),
    (lambda: Factor("width", {"smoke": (1,), "laptop": (1, 2)}), "declares no values for scale 'cluster'"),
    (lambda: Factor("width", dict.fromkeys((*SCALES, "lapto"), (1,))), "unknown scale 'lapto'; did you mean 'laptop'?"),
    (
        lambda: Factor("rate", {"smoke": (1,), "laptop": (0.5,), "cluster": (0.5,)}),
        "factor 'rate' has values of another type at another scale: float, int",
    ),
    (lambda: Table("1st", {"loss": float}), "table name '1st' must be lower-case"),
    (lambda: Table("runs", {"loss": float}), "table name 'runs' is the engine's own"),
    (lambda: Table("failures", {"loss": float}), "table name 'failures' is the engine's own"),
    (lambda: Table("losses", {}), "table 'losses' declares no column"),
    (lambda: Table("losses", {"a b": float}), "table 'losses': column name 'a b' must be lower-case"),
    (lambda: Table("losses", {"status": str}), "column 'status' is the engine's own"),
    (lambda: Table("losses", {"loss": complex}), "column 'loss' has type <class 'complex'>; use bool, int, float"),
    (lambda: Table("losses", {"loss": list[int]}), "column 'loss' has type list[int]"),
    (lambda: trial(name="a-b"), "trial name 'a-b' must be lower-case"),
    (lambda: trial(factors=()), "trial 'train' declares no factor"),
    (lambda: trial(tables=()), "trial 'train' declares no table"),
    (lambda: trial(run="measure"), "trial 'train': run must be a function of a pack, found 'measure'"),
    (lambda: trial(factors=(WIDTHS, WIDTHS)), "trial 'train': factor 'width' is declared twice"),
    (
        lambda: trial(tables=(Table("losses", {"width": int}),)),
        "table 'losses': column 'width' is already a factor of trial 'train'",
    ),
    (lambda: trial(gpus={"custer": 1.0}), "unknown scale 'custer'; did you mean 'cluster'?"),
    (lambda: Control("", kind=Slope(0.0)), "a control needs a name"),
    (lambda: Control("same"), "control 'same' is the claim itself"),
    (
        lambda: Control("flat", kind=Slope),
        "control 'flat': kind <class 'assay.kinds.Slope'> is none of Equality, Slope",
    ),
    (lambda: Control("flat", data="losses"), "control 'flat': data must be a function of the tables, found 'losses'"),
    (lambda: Gate("learns", read, "bound"), "gate 'learns': kind 'bound' is none of Equality, Slope, Bound"),  # type: ignore[arg-type]
    (lambda: claim(kind=-1.0), "claim 'W-1': kind -1.0 is none of Equality, Slope, Bound"),
    (lambda: claim(data=None), "claim 'W-1': data must be a function of the tables, found None"),
    (lambda: claim(id=""), "claim '' needs an id, a statement and a source"),
    (lambda: claim(source=""), "claim 'W-1' needs an id, a statement and a source"),
    (lambda: claim(controls=CONTROLS[:1]), "claim 'W-1' needs at least two controls that must be refuted"),
    (
        lambda: claim(controls=(CONTROLS[0], Control("weak", kind=Slope(1.0), trivial=True))),
        "claim 'W-1' needs at least two controls that must be refuted",
    ),
    (lambda: claim(controls=CONTROLS * 2), "claim 'W-1': control 'flat' is declared twice"),
    (lambda: claim(unit="seed"), "claim 'W-1': unit must be a tuple of column names, found 'seed'"),
    (lambda: claim(unit=()), "claim 'W-1': unit must be a tuple of column names, found ()"),
    (lambda: claim(expect="suported"), "outcome expected of claim 'W-1': 'suported'; did you mean 'supported'?"),
    (lambda: Figure("Loss", "t", "c", read), "figure name 'Loss' must be lower-case"),
    (lambda: study(name="my study"), "study name 'my study' must be lower-case"),
    (lambda: study(version=2), "study 'toy': version must be a text such as '1', found 2"),
    (lambda: study(papers=()), "study 'toy' names no paper"),
    (lambda: study(trials=()), "study 'toy' declares no trial"),
    (lambda: study(trials=(trial(), trial())), "study 'toy': trial 'train' is declared twice"),
    (lambda: study(trials=(trial(), trial(name="other"))), "study 'toy': table 'losses' is declared twice"),
    (lambda: study(claims=(claim(), claim())), "study 'toy': claim 'W-1' is declared twice"),
    (lambda: study(figures=(Figure("a", "t", "c", read),) * 2), "study 'toy': figure 'a' is declared twice"),
    (
        lambda: study(figures=(Figure("a", "t", "c", read, ("W-2",)),)),
        "unknown claim in figure 'a': 'W-2'; did you mean 'W-1'?",
    ),
]


@pytest.mark.parametrize(("declare", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_a_mistaken_declaration_is_refused(declare: Callable[[], object], message: str) -> None:
    with pytest.raises(AssayError, match=re.escape(message)) as caught:
        declare()
    assert "\n" not in str(caught.value)


def test_the_right_declarations_are_accepted() -> None:
    study(figures=(Figure("a", "t", "c", read, ("W-1",)),))


def test_unknown_names_the_nearest_or_all() -> None:
    assert str(unknown("scale", "clutser", SCALES)) == "unknown scale 'clutser'; did you mean 'cluster'?"
    assert str(unknown("scale", "zzz", ("b", "a"))) == "unknown scale 'zzz'; there is 'a', 'b'"
    assert str(unknown("study", "zzz", ())) == "unknown study 'zzz'; there is none"


@pytest.mark.parametrize(
    ("what", "name", "near"),
    [
        ("trial", "trian", "train"),
        ("trial_of", "lossess", "losses"),
        ("claim", "W-2", "W-1"),
        ("figure", "curv", "curve"),
    ],
)
def test_a_study_finds_its_parts_or_names_the_nearest(what: str, name: str, near: str) -> None:
    toy = study(figures=(Figure("curve", "t", "c", read),))
    found = getattr(toy, what)(near)
    assert near in (
        found.id if what == "claim" else found.name,
        *[table.name for table in getattr(found, "tables", ())],
    )
    with pytest.raises(AssayError, match=rf"of study 'toy': '{name}'; did you mean '{near}'\?"):
        getattr(toy, what)(name)


def test_values_differ_per_scale_and_keep_their_type() -> None:
    width = Factor("width", {"smoke": (1,), "laptop": (1, 2), "cluster": (1, 2, 3)})
    assert [len(width.at(scale)) for scale in SCALES] == [1, 2, 3]
    assert (width.type, Factor("on", (True, False)).type, Factor("lr", (0.1,)).type) == (int, bool, float)


def test_where_drops_combinations_in_the_order_of_the_grid() -> None:
    grid = list(trial(where=lambda cell: cell["seed"] < cell["width"]).grid("smoke"))
    assert grid == [{"width": w, "seed": s} for w in (1, 2) for s in (0, 1, 2) if s < w]


def test_bibtex_has_what_is_known() -> None:
    entry = PAPER.bibtex()
    assert entry.startswith("@inproceedings{doe2020,\n")
    for line in ("title = {{On widths}}", "author = {J. Doe and R. Roe}", "year = {2020}", "eprint = {2001.00001}"):
        assert line in entry
    assert entry.count("{") == entry.count("}")
    bare = Paper("a", "b", ("c",), 1999).bibtex()
    assert bare.startswith("@misc{a,")
    assert "booktitle" not in bare
    assert "eprint" not in bare


def test_schema_puts_cell_status_and_factors_in_front() -> None:
    columns = {"a": bool, "b": int, "c": float, "d": str, "e": list[float]}
    factors = (Factor("p", ("x",)), Factor("q", (1.5,)), Factor("r", (False,)))
    found = schema(trial(factors=factors), Table("wide", columns))
    assert found.names == ["cell", "status", "p", "q", "r", *columns]
    expected = [pa.string(), pa.string(), pa.string(), pa.float64(), pa.bool_()]
    assert found.types == [*expected, pa.bool_(), pa.int64(), pa.float64(), pa.string(), pa.list_(pa.float64())]


def pack_of(one: Trial) -> Pack:
    return plan(study(trials=(one,)), "smoke")[0]


BAD_ROWS: list[tuple[Callable[[pd.DataFrame], Any], str]] = [
    (lambda frame: [1, 2], "expected a DataFrame (see Pack.frame), found list"),
    (lambda frame: frame.drop(columns="loss"), "column 'loss' is declared but was not returned"),
    (lambda frame: frame.drop(columns="cell"), "column 'cell' is declared but was not returned"),
    (lambda frame: frame.assign(los=1.0), "column 'los' was returned but is not declared"),
    (lambda frame: frame.assign(width=1), "column 'width' was returned but is not declared"),
    (
        lambda frame: frame.assign(loss="low"),
        "column 'loss' must hold numbers: could not convert string to float: 'low'",
    ),
    (lambda frame: frame.assign(cell="c0"), "a row belongs to cell 'c0', which is not in the pack"),
    (lambda frame: frame.iloc[1:], "no row for cell {'width': 1, 'seed': 0}"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_ROWS, ids=[message[:40] for _, message in BAD_ROWS])
def test_rows_that_are_not_what_was_declared_are_refused(spoil: Callable[[pd.DataFrame], Any], message: str) -> None:
    one = trial()
    pack = pack_of(one)
    with pytest.raises(AssayError, match=re.escape(f"trial 'train', table 'losses': {message}")):
        complete_rows(pack, one, LOSSES, spoil(measure(pack)))


def test_complete_rows_puts_each_cells_factors_beside_its_rows() -> None:
    one = trial()
    pack = pack_of(one)
    frame = measure(pack).iloc[::-1]
    rows = complete_rows(pack, one, LOSSES, frame)
    assert list(rows.columns) == schema(one, LOSSES).names
    assert list(rows["cell"]) == [cell.id for cell in reversed(pack.cells)]
    assert list(rows["seed"]) == [2, 1, 0]
    assert set(rows["width"]) == {pack["width"]}


def test_a_further_table_may_be_silent_about_a_cell() -> None:
    spectra = Table("spectra", {"spectrum": list[float]})
    one = trial(tables=(LOSSES, spectra))
    pack = pack_of(one)
    frame = pack.frame(spectrum=[[1.0, 2.0]] * len(pack)).iloc[:1]
    assert len(complete_rows(pack, one, spectra, frame)) == 1


def test_a_row_is_diverged_where_a_measured_number_is_not_finite() -> None:
    table = Table("wide", {"loss": float, "spectrum": list[float], "step": int, "note": str})
    one = trial(tables=(table,))
    pack = pack_of(one)
    frame = pack.frame(
        loss=np.array([1.0, np.nan, 2.0]),
        spectrum=[[1.0, 2.0], [], [0.0, -np.inf]],
        step=np.arange(3),
        note=np.array(["nan", "inf", "ok"]),
    )
    assert list(complete_rows(pack, one, table, frame)["status"]) == ["ok", "diverged", "diverged"]
    own = frame.assign(status=["ok", "stopped", "ok"])
    assert list(complete_rows(pack, one, table, own)["status"]) == ["ok", "stopped", "ok"]


def test_run_pack_takes_one_frame_or_one_per_table_and_nothing_else() -> None:
    steps = Table("steps", {"step": int})
    pack = pack_of(trial())
    assert list(study().run_pack(pack)) == ["losses"]

    def both(pack: Pack) -> dict[str, pd.DataFrame]:
        return {"steps": pack.frame(step=np.arange(len(pack))), "losses": measure(pack)}

    two = study(trials=(trial(tables=(LOSSES, steps), run=both),))
    assert list(two.run_pack(pack)) == ["losses", "steps"]  # in the order of declaration
    lacking = study(trials=(trial(tables=(LOSSES, steps)),))
    with pytest.raises(AssayError, match=re.escape("fills tables ['losses', 'steps'], but returned ['losses']")):
        lacking.run_pack(pack)
    with pytest.raises(AssayError, match=r"of study 'toy': 'trian'; did you mean 'train'\?"):
        study().run_pack(Pack("toy", "trian", "smoke", pack.cells))


def test_cells_of_another_version_are_other_cells() -> None:
    one, other = study(), study(version="2")
    assert not {cell.id for cell in cells(one, one.trials[0], "smoke")} & {
        cell.id for cell in cells(other, other.trials[0], "smoke")
    }
