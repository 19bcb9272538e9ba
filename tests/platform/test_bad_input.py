"""Bad input: exit status 2, one line on standard error that names the culprit, and stored results untouched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from assay import registry

pytestmark = pytest.mark.usefixtures("installed")
MEAN = Path(__file__).with_name("mean_study.py")
Tell = Callable[..., Any]


class House(NamedTuple):
    """What a test may break: results of two studies, a place for files, a way to edit a study."""

    results: Path
    files: Path
    edited: Callable[..., Path]


@pytest.fixture
def house(measured: Path, tmp_path: Path, edited: Callable[..., Path]) -> House:
    root = tmp_path / "stored"
    shutil.copytree(measured, root)
    (tmp_path / "a_file").write_text("kept")
    (tmp_path / "empty").mkdir()
    return House(root, tmp_path, edited)


def stored(house: House) -> dict[str, bytes]:
    """Every byte under the results root and in the file beside it."""
    paths = [*house.results.rglob("*"), house.files / "a_file", house.files / "empty"]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(paths)}


def write(house: House, text: str) -> Path:
    path = house.files / "wrong.py"
    path.write_text(text)
    return path


def truncate(house: House) -> House:
    part = sorted(house.results.glob("mean/smoke/errors/*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-20])
    return house


def foreign(house: House) -> House:
    part = sorted(house.results.glob("mean/smoke/errors/*.parquet"))[0]
    shutil.copy(part, part.with_name("stranger.parquet"))
    return house


END = "            ),\n        ),\n    ),\n    figures"  # of the claim's declaration
FACTOR = 'Factor("n", (16, 64, 256))'
CONTROLS = 'Control("no gain from more draws", kind=Slope(0.0)),'
Line = Callable[[House], list[object]]


def declared(*changes: tuple[str, str]) -> Line:
    """Plan a study file with changes."""
    return lambda house: ["plan", house.edited(*changes)]


def on(*arguments: object) -> Line:
    """Arguments, on the stored results."""
    return lambda house: [*arguments, "--results", house.results]


BAD: dict[str, tuple[Line, str]] = {
    # names that do not exist
    "study": (on("run", "maen"), "unknown study 'maen'; did you mean 'mean'?"),
    "study to verify": (on("verify", "mean", "tooy"), "unknown study 'tooy'; did you mean 'toy'?"),
    "scale to run": (on("run", "mean", "--scale", "lapto"), "unknown scale 'lapto'; did you mean 'laptop'?"),
    "scale to verify": (on("verify", "--scale", "clutser"), "unknown scale 'clutser'; did you mean 'cluster'?"),
    "scale to query": (on("query", "select 1", "--scale", "smok"), "unknown scale 'smok'; did you mean 'smoke'?"),
    "claim": (
        on("show", "mean", "--claim", "MEAN-2"),
        "unknown claim of study 'mean': 'MEAN-2'; did you mean 'MEAN-1'?",
    ),
    "command": (lambda house: ["verfy"], "unknown command 'verfy'; did you mean 'verify'?"),
    "option": (on("run", "mean", "--worker", "1"), "unknown option of run: '--worker'; did you mean '--workers'?"),
    "format to verify": (on("verify", "--format", "jsn"), "unknown format 'jsn'; did you mean 'json'?"),
    "format to query": (on("query", "select 1", "--format", "cvs"), "unknown format 'cvs'; did you mean 'csv'?"),
    "table": (on("query", "select * from maen"), "unknown table 'maen'; did you mean 'mean'?"),
    "table of a study": (on("query", "select * from mean.error"), "did you mean 'mean.errors'?"),
    "column": (on("query", "select errr from mean"), '"errr"'),
    # words that are missing or of a wrong type
    "no study": (lambda house: ["run"], "STUDY"),
    "no claim": (on("show", "mean"), "--claim"),
    "no value": (lambda house: ["verify", "--results"], "--results"),
    "one word more": (lambda house: ["cite", "mean", "toy"], "toy"),
    "no workers": (on("run", "mean", "--workers", "0"), "--workers"),
    "negative workers": (on("plan", "mean", "--workers", "-1"), "--workers"),
    "workers in words": (on("run", "mean", "--workers", "two"), "--workers"),
    "no SQL": (on("query", "selct n from mean"), "selct"),
    "two statements": (on("query", "select 1; select 2"), "one SELECT is needed, found 2 statements"),
    "SQL that writes": (on("query", "create table t as select 1"), "only SELECT is allowed, found CREATE"),
    # places
    "results are a file": (lambda house: ["run", "mean", "--results", house.files / "a_file"], "a_file"),
    "results to verify are a file": (lambda house: ["verify", "mean", "--results", house.files / "a_file"], "a_file"),
    "results below a file": (lambda house: ["run", "mean", "--results", house.files / "a_file" / "x"], "a_file"),
    "results cannot be written": (lambda house: ["run", "mean", "--results", "/proc/assay"], "/proc/assay"),
    "results on an unknown filesystem": (lambda house: ["run", "mean", "--results", "s4://bucket/x"], "s4://bucket/x"),
    "report is a file": (on("run", "mean", "--scale", "laptop", "--out", "a_file"), "a_file is not a folder"),
    "report below a file": (on("report", "mean", "--out", "a_file/site"), "a_file is not a folder"),
    "malformed address": (on("run", "mean", "--scale", "laptop", "--address", "here"), "'here' is neither 'auto' nor"),
    "address of another kind": (
        on("run", "mean", "--scale", "laptop", "--address", "http://127.0.0.1:1"),
        "'http://127.0.0.1:1' is neither 'auto' nor HOST:PORT",
    ),
    "unreachable address": (
        on("run", "mean", "--scale", "laptop", "--address", "127.0.0.1:1"),
        "cluster address '127.0.0.1:1' cannot be reached",
    ),
    "port that is none": (on("run", "mean", "--scale", "laptop", "--address", "127.0.0.1:99999"), "127.0.0.1:99999"),
    # nothing there
    "nothing to verify": (lambda house: ["verify", "--results", "empty"], "run: assay run mean --scale smoke"),
    "nothing of a study": (lambda house: ["verify", "mean", "--results", "empty"], "no results of study 'mean'"),
    "nothing at a scale": (on("verify", "mean", "--scale", "cluster"), "at scale 'cluster'"),
    "nothing to report": (lambda house: ["report", "--results", "empty"], "no results in"),
    "nothing to show": (lambda house: ["show", "mean", "--claim", "MEAN-1", "--results", "empty"], "of study 'mean'"),
    "nothing to query": (lambda house: ["query", "select * from mean", "--results", "empty"], "unknown table 'mean'"),
    # study files
    "no file": (lambda house: ["run", "none.py"], "none.py"),
    "folder": (lambda house: ["run", house.files.joinpath("empty").rename(house.files / "dir.py")], "dir.py"),
    "no Python": (lambda house: ["run", write(house, "study = (")], "wrong.py cannot be imported: SyntaxError"),
    "raises": (lambda house: ["run", write(house, "1 / 0")], "wrong.py cannot be imported: ZeroDivisionError"),
    "exits": (lambda house: ["run", write(house, "raise SystemExit(0)")], "wrong.py cannot be imported: SystemExit"),
    "no study in a file": (lambda house: ["run", write(house, "x = 1")], "wrong.py defines 0 studies"),
    "two studies in a file": (
        lambda house: [
            "plan",
            write(house, MEAN.read_text() + "\nimport dataclasses\nother = dataclasses.replace(study)"),
        ],
        "wrong.py defines 2 studies",
    ),
    # declarations
    "factor twice": (declared((FACTOR, f"{FACTOR}, {FACTOR}")), "trial 'draw': factor 'n' is declared twice"),
    "factor of no values": (declared((FACTOR, 'Factor("n", ())')), "factor 'n' at scale 'smoke'"),
    "factor of two types": (declared((FACTOR, 'Factor("n", (16, "64"))')), "of one type, found int, str"),
    "factor at an unknown scale": (
        declared((FACTOR, 'Factor("n", {"smoke": (1,), "labtop": (1,), "cluster": (1,)})')),
        "unknown scale 'labtop'; did you mean 'laptop'?",
    ),
    "engine's table": (declared(('Table("errors"', 'Table("runs"')), "table name 'runs' is the engine's own"),
    "column like a factor": (declared(('{"error": float}', '{"n": float}')), "column 'n' is already a factor"),
    "column of an unknown type": (declared(('{"error": float}', '{"error": complex}')), "column 'error' has type"),
    "one control": (declared((CONTROLS, "")), "claim 'MEAN-1' needs at least two controls"),
    "kind that is none": (declared(("Slope(-0.5)", "-0.5")), "claim 'MEAN-1': kind -0.5 is none of Equality, Slope"),
    "band below zero": (declared(("Slope(-0.5)", "Slope(-0.5, band=-1)")), "band"),
    "figure of an unknown claim": (declared(('("MEAN-1",)', '("MEAN-7",)')), "'MEAN-7'; did you mean 'MEAN-1'?"),
    "outcome that is none": (
        declared((END, END.replace("),", "),\n            expect='suported',", 1))),
        "'suported'; did you mean 'supported'?",
    ),
    # what is stored
    "truncated part": (lambda house: on("verify", "mean")(truncate(house)), "truncated"),
    "truncated part to query": (lambda house: on("query", "select * from mean")(truncate(house)), "truncated"),
    "truncated part to report": (lambda house: on("report", "mean")(truncate(house)), "truncated"),
    "bad address where a part is truncated": (
        lambda house: on("run", "mean", "--address", "here")(truncate(house)),
        "'here' is neither 'auto' nor HOST:PORT",
    ),
    "foreign part to run": (lambda house: on("run", "mean")(foreign(house)), "stranger.parquet"),
    "foreign part": (lambda house: on("show", "mean", "--claim", "MEAN-1")(foreign(house)), "stranger.parquet"),
    "claim that cannot be computed": (
        lambda house: [
            "verify",
            house.edited(('tables["errors"]', 'tables["erors"]')),
            "--results",
            house.results,
        ],
        "unknown table of study 'mean': 'erors'; did you mean 'errors'?",
    ),
    "claim without its column": (
        lambda house: ["verify", house.edited(('"n": "x"', '"n": "y"')), "--results", house.results],
        "claim MEAN-1: column 'x' is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_and_touches_nothing(case: str, house: House, tell: Tell) -> None:
    make, culprit = BAD[case]
    arguments = make(house)
    before = stored(house)
    said = tell(*arguments)
    assert said.status == 2
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("assay: ")
    assert culprit in said.err
    assert stored(house) == before
    assert "Traceback" not in said.out


def test_an_entry_point_must_be_the_study_it_says(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, message in (
        ("mean", "mean_study:measure", "study 'mean': mean_study:measure is a function, not a Study"),
        ("average", "mean_study:study", "study 'average' calls itself 'mean'"),
        ("mean", "mean_study:gone", "study 'mean' cannot be imported: AttributeError"),
    ):
        monkeypatch.setattr(registry, "entry_points", lambda group, point=(name, value): [EntryPoint(*point, group)])
        said = tell("cite", name)
        assert said.status == 2
        assert said.err.startswith(f"assay: {message}")
