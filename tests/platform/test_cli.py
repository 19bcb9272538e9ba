"""The `assay` command: what it prints, its exit status, and one line for every bad input."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple

import pytest

import assay
from assay import registry
from assay.cli import main
from assay.plan import plan
from assay.results import Results
from assay.store import Store
from assay.study import SCALES
from assay.sweep import run_and_commit

HERE = Path(__file__).parent
MEAN, TOY = HERE / "mean_study.py", HERE / "toy_study.py"
HEADER = "study,claim,statement,source,kind,prediction,estimate,low,high,n,verdict,reason,controls,controls_refuted"
COLUMNS = HEADER.split(",")


class Said(NamedTuple):
    """What a command did: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


def tell(*arguments: object) -> Said:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["assay", *map(str, arguments)])
        try:
            main()
        except SystemExit as exit_:
            return Said(int(exit_.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("the command always exits")


def measure(study: Path | str, root: Path, *scales: str) -> None:
    """Fill a store without Ray."""
    declared = registry.load(str(study))
    for scale in scales:
        for pack in plan(declared, scale):
            failed, _ = run_and_commit(declared, pack, Store(root), {"revision": "r1", "libraries": {"numpy": "2"}})
            assert not failed


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of both studies of this folder."""
    root = tmp_path_factory.mktemp("measured")
    measure(MEAN, root, "smoke")
    measure(TOY, root, "laptop")
    return root


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both studies of this folder are installed, and commands run in an empty folder."""
    monkeypatch.syspath_prepend(str(HERE))
    points = [EntryPoint(name, f"{name}_study:study", registry.GROUP) for name in ("toy", "mean")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.delenv("ASSAY_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)


def words(text: str) -> str:
    """Text without the lines and line breaks of a table."""
    return re.sub(r"[\s│┃|]+", " ", text)


# Documentation


def commands(text: str) -> list[tuple[str, set[str]]]:
    """Commands that a text shows, each with its options."""
    lines = re.findall(r"(?:^|`)assay ([a-z]+)([^\n`#]*)", text, flags=re.MULTILINE)
    return [(command, set(re.findall(r"--[a-z-]+", rest))) for command, rest in lines]


def test_every_command_and_option_of_the_readme_is_in_the_help() -> None:
    shown = commands((HERE.parents[1] / "README.md").read_text())
    assert {command for command, _ in shown} >= {"list", "plan", "run", "verify", "query", "show", "cite", "report"}
    everything = tell("--help").out
    for command, options in shown:
        assert re.search(rf"\b{command}\b", everything)
        about = tell(command, "--help")
        assert about.status == 0
        for option in options:
            assert option in about.out, (command, option)


def test_every_command_of_the_help_is_in_the_readme() -> None:
    from assay.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == {command for command, _ in commands((HERE.parents[1] / "README.md").read_text())}


def test_without_a_command_there_is_help() -> None:
    said = tell()
    assert said.status == 2
    assert "Usage: assay" in said.out + said.err


# What is printed


def test_list_counts_the_cells_of_every_scale() -> None:
    said = tell("list")
    assert (said.status, said.err) == (0, "")
    for path in (MEAN, TOY):
        study = registry.load(str(path))
        for scale in SCALES:
            packs = plan(study, scale)
            count = sum(map(len, packs))
            assert f" {study.name} {scale} {len(study.claims)} {count} {len(packs)} " in words(said.out)
        assert study.title in words(said.out)


def test_plan_before_and_after(measured: Path, tmp_path: Path) -> None:
    packs = plan(registry.load(str(MEAN)), "smoke")
    before = tell("plan", "mean", "--results", tmp_path / "none", "--workers", 3)
    assert before.status == 0
    assert f" draw {sum(map(len, packs))} 0 0 {len(packs)} " in words(before.out)
    assert "on 3 workers" in before.out
    assert not (tmp_path / "none").exists()
    after = tell("plan", "mean", "--results", measured)
    assert f" draw {sum(map(len, packs))} {sum(map(len, packs))} 0 0 " in words(after.out)


def test_plan_counts_failed_cells_as_run_does(measured: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    shutil.copytree(measured, root)
    study = registry.load(str(MEAN))
    pack = plan(study, "smoke")[0]
    for part in root.rglob(f"{pack.id}.parquet"):
        part.unlink()
    cells = [(cell.id, dict(cell.factors)) for cell in pack.cells]
    Store(root).record_failure("mean", "smoke", pack.id, cells, error="ValueError", message="no", traceback="t")
    total = sum(map(len, plan(study, "smoke")))
    assert f" draw {total} {total - len(pack)} {len(pack)} 0 " in words(tell("plan", "mean", "--results", root).out)


def test_verify_as_csv_has_a_row_per_claim(measured: Path) -> None:
    said = tell("verify", "--results", measured, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert said.out.splitlines()[0] == HEADER
    expected = [*assay.verdicts("mean", results=measured).to_dict("records")]
    expected += assay.verdicts("toy", results=measured).to_dict("records")
    assert [row["claim"] for row in rows] == ["MEAN-1", "TOY-1", "TOY-2", "TOY-3", "TOY-4"]
    for row, record in zip(rows, expected, strict=True):
        assert list(row) == COLUMNS
        for name in COLUMNS:
            assert row[name] == ("" if record[name] != record[name] else str(record[name]))


def test_verify_as_json_and_as_a_table_say_the_same(measured: Path) -> None:
    records = json.loads(tell("verify", "mean", "--results", measured, "--format", "json").out)
    assert [list(record) for record in records] == [COLUMNS]
    (record,) = records
    assert record["verdict"] == "supported"
    assert record["low"] < record["estimate"] < record["high"]
    assert (record["controls"], record["controls_refuted"]) == (2, 2)
    table = tell("verify", "mean", "--results", measured)
    assert table.status == 0
    shown = words(table.out)
    assert f" MEAN-1 supported {record['prediction']:.3g} {record['estimate']:.3g} [" in shown
    assert "2/2 refuted" in shown


def test_verify_fails_when_an_expectation_does(measured: Path) -> None:
    said = tell("verify", "toy", "--results", measured)
    assert said.status == 1
    expected = [line for line in said.err.splitlines() if ": expected " in line]
    assert [line.partition(", found ")[0] for line in expected] == ["TOY-2: expected supported"]


def edited(tmp_path: Path, *changes: tuple[str, str], source: Path = MEAN) -> Path:
    """Copy of a study with changes in its text."""
    text = source.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = tmp_path / f"edited_{source.stem}.py"
    path.write_text(text)
    return path


def test_verify_fails_when_a_control_is_not_refuted(tmp_path: Path) -> None:
    study = edited(tmp_path, ("kind=Slope(0.0)", "kind=Slope(-0.5)"), ('version="1"', 'version="weak"'))
    measure(study, tmp_path / "results", "smoke")
    said = tell("verify", study, "--results", tmp_path / "results")
    assert said.status == 1
    assert said.err == "MEAN-1: control 'no gain from more draws' is supported, it must be refuted\n"
    assert "void" in said.out


def expecting(outcome: str) -> tuple[str, str]:
    """Change that declares the outcome of MEAN-1."""
    end = "            ),\n        ),\n    ),\n    figures"
    return end, end.replace("),", f"),\n            expect={outcome!r},", 1)


def test_smoke_keeps_no_expectation(tmp_path: Path) -> None:
    study = edited(tmp_path, expecting("refuted"))
    measure(study, tmp_path / "results", "smoke", "laptop")
    assert tell("verify", study, "--results", tmp_path / "results", "--scale", "smoke").status == 0
    said = tell("verify", study, "--results", tmp_path / "results")  # the largest that is stored
    assert said.status == 1
    assert said.err.startswith("MEAN-1: expected refuted, found supported: ")


def test_query_in_every_format(measured: Path) -> None:
    ask = ["query", "select n, count(*) as cells, avg('nan'::double) as nothing from mean group by n order by n"]
    rows = list(csv.DictReader(io.StringIO(tell(*ask, "--results", measured, "--format", "csv").out)))
    assert rows == [{"n": str(n), "cells": "8", "nothing": ""} for n in (16, 64, 256)]
    records = json.loads(tell(*ask, "--results", measured, "--format", "json").out)
    assert records == [{"n": n, "cells": 8, "nothing": None} for n in (16, 64, 256)]
    assert " n cells nothing " in words(tell(*ask, "--results", measured).out).replace("┏", " ")
    none = tell("query", "select n from mean where n < 0", "--results", measured)
    assert none.status == 0
    assert " n " in words(none.out)


def test_query_sees_provenance(measured: Path) -> None:
    ask = "select distinct revision, libraries_numpy, version from mean.runs"
    said = tell("query", ask, "--results", measured, "--format", "json")
    assert json.loads(said.out) == [{"revision": "r1", "libraries_numpy": "2", "version": "1"}]


def test_results_come_from_the_option_then_the_variable(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tell("verify", "mean").status == 2
    monkeypatch.setenv("ASSAY_RESULTS", str(measured))
    assert tell("verify", "mean").status == 0
    assert tell("verify", "mean", "--results", "elsewhere").status == 2


def test_show_tells_a_claim_with_its_controls(measured: Path) -> None:
    study = registry.load(str(TOY))
    said = tell("show", "toy", "--claim", "TOY-3", "--results", measured)
    assert said.status == 0
    claim = study.claim("TOY-3")
    for text in (claim.statement, claim.source, claim.note, "verdict: "):
        assert text in said.out
    for control in claim.controls:
        assert control.name in words(said.out)
    void = tell("show", "toy", "--claim", "TOY-4", "--results", measured)
    assert "verdict: void (assumption not met: accuracy above two" in void.out


def test_cite_prints_exactly_the_papers_of_the_study() -> None:
    said = tell("cite", "toy")
    assert said.out == "\n\n".join(paper.bibtex() for paper in registry.load(str(TOY)).papers) + "\n"
    assert said.out.count("@") == 1


def test_report_says_where_it_is(measured: Path, tmp_path: Path) -> None:
    said = tell("report", "mean", "--results", measured, "--out", tmp_path / "site")
    assert said == Said(0, f"report: {tmp_path / 'site' / 'index.html'}\n", "")
    assert (tmp_path / "site" / "mean.html").exists()


def test_a_finished_study_is_judged_again_and_rendered_once(measured: Path, tmp_path: Path) -> None:
    once = tell("run", "mean", "--results", measured, "--out", tmp_path / "site")
    assert once.status == 0
    assert "nothing to measure" in once.err
    page = tmp_path / "site" / "mean.html"
    assert once.out.endswith(f"report: {page}\n")
    page.write_text("read me")
    again = tell("run", "mean", "--results", measured, "--out", tmp_path / "site")
    assert "as it was rendered before" in again.out
    assert page.read_text() == "read me"


def test_failures_of_cells_no_longer_planned_do_not_count(measured: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    shutil.copytree(measured, root)
    Store(root).record_failure("mean", "smoke", "draw-old", [("old", {"n": 4})], error="E", message="", traceback="")
    said = tell("run", "mean", "--results", root, "--out", tmp_path / "site")
    assert said.status == 0
    assert "failed, the first" not in said.err


def test_one_broken_study_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("mean", "mean_study:study", registry.GROUP), EntryPoint("gone", "gone:study", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    said = tell("list")
    assert said.status == 2
    assert " mean smoke " in words(said.out)
    assert said.err == "assay: study 'gone' cannot be imported: ModuleNotFoundError: No module named 'gone'\n"


# Bad input: exit status 2, one line that names the culprit, stored results untouched


class House(NamedTuple):
    """Folders of a test: results of two studies, and a place for files."""

    results: Path
    files: Path


@pytest.fixture
def house(measured: Path, tmp_path: Path) -> House:
    root = tmp_path / "stored"
    shutil.copytree(measured, root)
    (tmp_path / "a_file").write_text("kept")
    (tmp_path / "empty").mkdir()
    return House(root, tmp_path)


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


FACTOR = 'Factor("n", (16, 64, 256))'
CONTROLS = 'Control("no gain from more draws", kind=Slope(0.0)),'
Line = Callable[[House], list[object]]


def declared(*changes: tuple[str, str]) -> Line:
    """Plan a study file with changes."""
    return lambda house: ["plan", edited(house.files, *changes)]


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
    "outcome that is none": (declared(expecting("suported")), "'suported'; did you mean 'supported'?"),
    # what is stored
    "truncated part": (lambda house: on("verify", "mean")(truncate(house)), "truncated"),
    "truncated part to query": (lambda house: on("query", "select * from mean")(truncate(house)), "truncated"),
    "truncated part to report": (lambda house: on("report", "mean")(truncate(house)), "truncated"),
    "foreign part": (lambda house: on("show", "mean", "--claim", "MEAN-1")(foreign(house)), "stranger.parquet"),
    "claim that cannot be computed": (
        lambda house: [
            "verify",
            edited(house.files, ('tables["errors"]', 'tables["erors"]')),
            "--results",
            house.results,
        ],
        "unknown table of study 'mean': 'erors'; did you mean 'errors'?",
    ),
    "claim without its column": (
        lambda house: ["verify", edited(house.files, ('"n": "x"', '"n": "y"')), "--results", house.results],
        "claim MEAN-1: column 'x' is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_and_touches_nothing(case: str, house: House) -> None:
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


def test_an_entry_point_must_be_the_study_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, message in (
        ("mean", "mean_study:measure", "study 'mean': mean_study:measure is a function, not a Study"),
        ("average", "mean_study:study", "study 'average' calls itself 'mean'"),
        ("mean", "mean_study:gone", "study 'mean' cannot be imported: AttributeError"),
    ):
        monkeypatch.setattr(registry, "entry_points", lambda group, point=(name, value): [EntryPoint(*point, group)])
        said = tell("cite", name)
        assert said.status == 2
        assert said.err.startswith(f"assay: {message}")


def test_a_study_file_is_executed_again_only_when_it_has_changed(tmp_path: Path) -> None:
    path = edited(tmp_path)
    first = registry.load(str(path))
    assert registry.load(str(path)) is first
    path.write_text(path.read_text() + "# changed\n")
    assert registry.load(str(path)) is not first
    assert Results(registry.load(str(path)), "smoke", Store(tmp_path)).progress()["draw"].stored == 0


# The real command, in a process of its own


def command(*arguments: object, cwd: Path) -> Said:
    done = subprocess.run(
        [sys.executable, "-c", "from assay.cli import main; main()", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


def test_the_command_in_a_process_of_its_own(measured: Path, tmp_path: Path) -> None:
    good = command("verify", MEAN, "--results", measured, "--format", "csv", cwd=tmp_path)
    assert (good.status, good.err) == (0, "")
    assert good.out.splitlines()[0] == HEADER
    bad = command("cite", "widht", cwd=tmp_path)
    assert bad == Said(2, "", "assay: unknown study 'widht'; did you mean 'width'?\n")


def test_the_console_script_is_installed(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("assay")
    done = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Usage: assay" in done.stdout
