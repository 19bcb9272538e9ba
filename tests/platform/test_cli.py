"""The `assay` command: what it prints, and its exit status."""

from __future__ import annotations

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
from typing import Any

import pytest

import assay
from assay import registry
from assay.plan import plan
from assay.results import Results
from assay.store import Store
from assay.study import SCALES

HERE = Path(__file__).parent
MEAN, TOY = HERE / "mean_study.py", HERE / "toy_study.py"
HEADER = "study,claim,statement,source,kind,prediction,estimate,low,high,n,verdict,reason,controls,controls_refuted"
COLUMNS = HEADER.split(",")

pytestmark = pytest.mark.usefixtures("installed")
Tell = Callable[..., Any]


def words(text: str) -> str:
    """Text without the lines and line breaks of a table."""
    return re.sub(r"[\s│┃|]+", " ", text)


# Documentation


def commands(text: str) -> list[tuple[str, set[str]]]:
    """Commands that a text shows, each with its options."""
    lines = re.findall(r"(?:^|`)assay ([a-z]+)([^\n`#]*)", text, flags=re.MULTILINE)
    return [(command, set(re.findall(r"--[a-z-]+", rest))) for command, rest in lines]


def test_every_command_and_option_of_the_readme_is_in_the_help(tell: Tell) -> None:
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


def test_without_a_command_there_is_help(tell: Tell) -> None:
    said = tell()
    assert said.status == 2
    assert "Usage: assay" in said.out + said.err


# What is printed


def test_list_counts_the_cells_of_every_scale(tell: Tell) -> None:
    said = tell("list")
    assert (said.status, said.err) == (0, "")
    for path in (MEAN, TOY):
        study = registry.load(str(path))
        for scale in SCALES:
            packs = plan(study, scale)
            count = sum(map(len, packs))
            assert f" {study.name} {scale} {len(study.claims)} {count} {len(packs)} " in words(said.out)
        assert study.title in words(said.out)


def test_plan_before_and_after(tell: Tell, measured: Path, tmp_path: Path) -> None:
    packs = plan(registry.load(str(MEAN)), "smoke")
    before = tell("plan", "mean", "--results", tmp_path / "none", "--workers", 3)
    assert before.status == 0
    assert f" draw {sum(map(len, packs))} 0 0 {len(packs)} " in words(before.out)
    assert "on 3 workers" in before.out
    assert not (tmp_path / "none").exists()
    after = tell("plan", "mean", "--results", measured)
    assert f" draw {sum(map(len, packs))} {sum(map(len, packs))} 0 0 " in words(after.out)


def test_plan_counts_failed_cells_as_run_does(tell: Tell, measured: Path, tmp_path: Path) -> None:
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


def test_verify_as_csv_has_a_row_per_claim(tell: Tell, measured: Path) -> None:
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


def test_verify_as_json_and_as_a_table_say_the_same(tell: Tell, measured: Path) -> None:
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


def test_verify_fails_when_an_expectation_does(tell: Tell, measured: Path) -> None:
    said = tell("verify", "toy", "--results", measured)
    assert said.status == 1
    expected = [line for line in said.err.splitlines() if ": expected " in line]
    assert [line.partition(", found ")[0] for line in expected] == ["TOY-2: expected supported"]


def test_verify_fails_when_a_control_is_not_refuted(
    tell: Tell, measure: Callable[..., None], edited: Callable[..., Path], tmp_path: Path
) -> None:
    study = edited(("kind=Slope(0.0)", "kind=Slope(-0.5)"), ('version="1"', 'version="weak"'))
    measure(study, tmp_path / "results", "smoke")
    said = tell("verify", study, "--results", tmp_path / "results")
    assert said.status == 1
    assert said.err == "MEAN-1: control 'no gain from more draws' is supported, it must be refuted\n"
    assert "void" in said.out


def expecting(outcome: str) -> tuple[str, str]:
    """Change that declares the outcome of MEAN-1."""
    end = "            ),\n        ),\n    ),\n    figures"
    return end, end.replace("),", f"),\n            expect={outcome!r},", 1)


def test_smoke_keeps_no_expectation(
    tell: Tell, measure: Callable[..., None], edited: Callable[..., Path], tmp_path: Path
) -> None:
    study = edited(expecting("refuted"))
    measure(study, tmp_path / "results", "smoke", "laptop")
    assert tell("verify", study, "--results", tmp_path / "results", "--scale", "smoke").status == 0
    said = tell("verify", study, "--results", tmp_path / "results")  # the largest that is stored
    assert said.status == 1
    assert said.err.startswith("MEAN-1: expected refuted, found supported: ")


def test_query_in_every_format(tell: Tell, measured: Path) -> None:
    ask = ["query", "select n, count(*) as cells, avg('nan'::double) as nothing from mean group by n order by n"]
    rows = list(csv.DictReader(io.StringIO(tell(*ask, "--results", measured, "--format", "csv").out)))
    assert rows == [{"n": str(n), "cells": "8", "nothing": ""} for n in (16, 64, 256)]
    records = json.loads(tell(*ask, "--results", measured, "--format", "json").out)
    assert records == [{"n": n, "cells": 8, "nothing": None} for n in (16, 64, 256)]
    assert " n cells nothing " in words(tell(*ask, "--results", measured).out).replace("┏", " ")
    none = tell("query", "select n from mean where n < 0", "--results", measured)
    assert none.status == 0
    assert " n " in words(none.out)


def test_query_sees_provenance(tell: Tell, measured: Path) -> None:
    ask = "select distinct revision, libraries_numpy, version from mean.runs"
    said = tell("query", ask, "--results", measured, "--format", "json")
    assert json.loads(said.out) == [{"revision": "r1", "libraries_numpy": "2", "version": "1"}]


def test_results_come_from_the_option_then_the_variable(
    tell: Tell, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tell("verify", "mean").status == 2
    monkeypatch.setenv("ASSAY_RESULTS", str(measured))
    assert tell("verify", "mean").status == 0
    assert tell("verify", "mean", "--results", "elsewhere").status == 2


def test_show_tells_a_claim_with_its_controls(tell: Tell, measured: Path) -> None:
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


def test_cite_prints_exactly_the_papers_of_the_study(tell: Tell) -> None:
    said = tell("cite", "toy")
    assert said.out == "\n\n".join(paper.bibtex() for paper in registry.load(str(TOY)).papers) + "\n"
    assert said.out.count("@") == 1


def test_report_says_where_it_is(tell: Tell, measured: Path, tmp_path: Path) -> None:
    said = tell("report", "mean", "--results", measured, "--out", tmp_path / "site")
    assert said == (0, f"report: {tmp_path / 'site' / 'index.html'}\n", "")
    assert (tmp_path / "site" / "mean.html").exists()


def test_a_finished_study_is_judged_again_and_rendered_once(tell: Tell, measured: Path, tmp_path: Path) -> None:
    once = tell("run", "mean", "--results", measured, "--out", tmp_path / "site")
    assert once.status == 0
    assert "nothing to measure" in once.err
    page = tmp_path / "site" / "mean.html"
    assert once.out.endswith(f"report: {page}\n")
    page.write_text("read me")
    again = tell("run", "mean", "--results", measured, "--out", tmp_path / "site")
    assert "as it was rendered before" in again.out
    assert page.read_text() == "read me"


def test_failures_of_cells_no_longer_planned_do_not_count(tell: Tell, measured: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    shutil.copytree(measured, root)
    Store(root).record_failure("mean", "smoke", "draw-old", [("old", {"n": 4})], error="E", message="", traceback="")
    said = tell("run", "mean", "--results", root, "--out", tmp_path / "site")
    assert said.status == 0
    assert "failed, the first" not in said.err


def test_run_sets_a_truncated_file_aside_and_says_so(tell: Tell, measured: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    shutil.copytree(measured, root)
    stray = root / "mean" / "smoke" / "errors" / "stray.parquet"
    stray.write_bytes(b"PAR1")
    assert tell("verify", "mean", "--results", root).status == 2
    said = tell("run", "mean", "--results", root, "--out", tmp_path / "site")
    assert said.status == 0
    assert f"set aside: {stray}: truncated" in said.err
    assert tell("verify", "mean", "--results", root).status == 0


def test_one_broken_study_does_not_hide_the_others(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("mean", "mean_study:study", registry.GROUP), EntryPoint("gone", "gone:study", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    said = tell("list")
    assert said.status == 2
    assert " mean smoke " in words(said.out)
    assert said.err == "assay: study 'gone' cannot be imported: ModuleNotFoundError: No module named 'gone'\n"


def test_a_study_file_is_executed_again_only_when_it_has_changed(edited: Callable[..., Path], tmp_path: Path) -> None:
    path = edited()
    first = registry.load(str(path))
    assert registry.load(str(path)) is first
    path.write_text(path.read_text() + "# changed\n")
    assert registry.load(str(path)) is not first
    assert Results(registry.load(str(path)), "smoke", Store(tmp_path)).progress()["draw"].stored == 0


# The real command, in a process of its own


def command(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", "from assay.cli import main; main()", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_command_in_a_process_of_its_own(measured: Path, tmp_path: Path) -> None:
    status, out, err = command("verify", MEAN, "--results", measured, "--format", "csv", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == HEADER
    bad = command("cite", "widht", cwd=tmp_path)
    assert bad == (2, "", "assay: unknown study 'widht'; did you mean 'width'?\n")


def test_the_console_script_is_installed(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("assay")
    done = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Usage: assay" in done.stdout
