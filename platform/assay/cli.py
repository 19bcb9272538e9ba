"""The `assay` command. Exit status: 0 done; 1 something failed or a control was not refuted; 2 bad input."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay import console
from assay.api import open_results, results_root
from assay.errors import AssayError, unknown
from assay.plan import cells, makespan, plan
from assay.progress import duration
from assay.registry import available, load
from assay.store import Store
from assay.study import SCALES, check_scale

if TYPE_CHECKING:
    from assay.results import Results
    from assay.verdict import Verdict

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Put the claims of deep-learning theory papers to the test.",
)


StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="An installed study, or a .py file that defines one.")]
StudyNames = Annotated[list[str] | None, typer.Argument(metavar="STUDY", help="Default: all that have results.")]
RootOption = Annotated[
    str | None, typer.Option("--results", help="Folder or URI; default: $ASSAY_RESULTS, else ./results.")
]
ScaleOption = Annotated[
    str | None, typer.Option("--scale", help="smoke, laptop or cluster; default: the largest stored.")
]
FormatOption = Annotated[str, typer.Option("--format", help="table, csv or json.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the rendered report.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Packs at a time; default: one per core.")]


@app.command("list")
def list_() -> None:
    """List the studies: their claims, and cells and expected cost at each scale."""
    rows, broken = [], []
    for name in available():
        try:
            study = load(name)
        except AssayError as error:  # one broken study does not hide the others
            broken.append(error)
            continue
        for scale in SCALES:
            packs = plan(study, scale)
            rows.append(
                {
                    "study": name,
                    "scale": scale,
                    "claims": len(study.claims),
                    "cells": sum(len(pack) for pack in packs),
                    "packs": len(packs),
                    "core time": duration(sum(pack.expected_s for pack in packs)),
                    "title": study.title,
                }
            )
    console.rows(rows)
    if broken:
        raise broken[0]


@app.command("plan")
def plan_(
    study: StudyName,
    scale: Annotated[str, typer.Option(help="smoke, laptop or cluster.")] = "smoke",
    results: RootOption = None,
    workers: WorkersOption = None,
) -> None:
    """Show what `run` would do: cells, packs, memory, expected time."""
    from assay.results import Results
    from assay.sweep import pending

    declared = load(study)
    opened = Results(declared, check_scale(scale), Store(results_root(results)))
    packs = pending(opened)
    rows = []
    for trial, progress in opened.progress().items():
        mine = [pack for pack in packs if pack.trial == trial]
        rows.append(
            {
                "trial": trial,
                "cells": progress.planned,
                "stored": progress.stored,
                "failed": progress.failed,
                "packs to run": len(mine),
                "largest pack": f"{max((pack.expected_bytes for pack in mine), default=0) / 2**20:.0f} MiB",
                "core time": duration(sum(pack.expected_s for pack in mine)),
                "processes": declared.trial(trial).workers.get(scale, 1),
                "GPU share": declared.trial(trial).gpus.get(scale, 0.0),
            }
        )
    console.rows(rows)
    count = workers or os.cpu_count() or 1
    typer.echo(f"expected: {duration(makespan(packs, count))} on {count} workers, after Ray has started")


@app.command()
def run(
    study: StudyName,
    scale: Annotated[str, typer.Option(help="smoke, laptop or cluster.")] = "smoke",
    results: RootOption = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: auto or HOST:PORT; default: one on this machine.")
    ] = None,
    workers: WorkersOption = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed packs again.")] = False,
    out: OutOption = Path("report"),
) -> None:
    """Measure a study, judge its claims, render the report; run again to resume."""
    from assay import sweep

    declared = load(study)
    check_scale(scale)
    _check_out(out)
    page = out / f"{declared.name}.html"
    root = results_root(results)
    try:
        done = sweep.run(study, scale, root, address=address, workers=workers, retry_failed=retry_failed)
    except KeyboardInterrupt:
        again = shlex.join(["assay", *sys.argv[1:]])
        typer.echo(f"interrupted; what was measured is stored. Go on with: {again}", err=True)
        raise typer.Exit(130) from None
    for problem in done.set_aside:
        typer.echo(f"set aside: {problem}", err=True)
    opened = open_results(study, scale, results)
    verdicts = opened.verdicts()
    console.verdicts(opened, verdicts)
    if done.packs:
        count = f"{done.cells - done.failed} cells in {done.packs} packs"
        typer.echo(f"measured {count}, {duration(done.wall_s)}", err=True)
    else:
        typer.echo("nothing to measure: every cell is stored, or failed before", err=True)
    if done.packs or not page.exists():
        _render([opened], out)
        typer.echo(f"report: {page}")
    else:
        typer.echo(f"report: {page}, as it was rendered before; anew with: assay report {study}")
    failures = opened.store.failures(declared.name, scale)
    planned = {cell.id for trial in declared.trials for cell in cells(declared, trial, scale)}
    failures = failures[failures["cell"].isin(planned)]
    if len(failures):
        first = failures.iloc[0]
        typer.echo(
            f"{len(failures)} of {len(planned)} cells failed, the first with {_line(first['error'], first['message'])}; "
            f"tracebacks: assay query 'select * from {declared.name}.failures'; again with --retry-failed",
            err=True,
        )
        raise typer.Exit(1)


@app.command()
def verify(
    studies: StudyNames = None,
    scale: ScaleOption = None,
    results: RootOption = None,
    format: FormatOption = "table",
) -> None:
    """Print the verdict table; exit status 1 if a control is not refuted or a declared expectation fails."""
    import pandas as pd

    from assay.results import verdict_frame

    console.check_format(format)
    frames, complaints = [], []
    for opened in _opened(studies, scale, results):
        verdicts = opened.verdicts()
        complaints += _complaints(opened, verdicts)
        if format == "table":
            console.verdicts(opened, verdicts)
        frames.append(verdict_frame(opened.study, verdicts))
    if format != "table":
        console.frame(pd.concat(frames, ignore_index=True), format)
    for complaint in complaints:
        typer.echo(complaint, err=True)
    if complaints:
        raise typer.Exit(1)


@app.command()
def report(
    studies: StudyNames = None,
    scale: ScaleOption = None,
    results: RootOption = None,
    out: OutOption = Path("report"),
) -> None:
    """Render the site: an index, a page per study, every figure as SVG and PNG; it works offline."""
    typer.echo(f"report: {_render(_opened(studies, scale, results), out)}")


@app.command()
def query(
    statement: Annotated[str, typer.Argument(metavar="SQL", help="For example: select count(*) from width")],
    scale: ScaleOption = None,
    results: RootOption = None,
    format: FormatOption = "table",
) -> None:
    """Ask in SQL over the stored tables: STUDY is its primary table, STUDY.TABLE any other, STUDY.runs its packs."""
    from assay.api import query as ask

    console.check_format(format)
    if scale is not None:
        check_scale(scale)
    console.frame(ask(statement, scale=scale, results=results), format)


@app.command()
def show(
    study: StudyName,
    claim: Annotated[str, typer.Option(help="A claim's id, as in: assay verify STUDY.")],
    scale: ScaleOption = None,
    results: RootOption = None,
) -> None:
    """Show one claim: sentence, source, every case's estimate, verdict, controls."""
    from assay.results import judge_claim

    declared = load(study).claim(claim)
    opened = _open(study, scale, results)
    verdict = judge_claim(declared, opened.tables, opened.progress())
    typer.echo(f"{declared.id}  {declared.statement}\nsource: {declared.source}")
    typer.echo(f"verdict: {verdict.outcome} ({verdict.reason})")
    if declared.note:
        typer.echo(f"note: {declared.note}")
    if verdict.assessment:
        console.rows(
            [
                {
                    "case": case.case or "all",
                    "prediction": f"{case.prediction:.4g}",
                    "estimate": f"{case.estimate:.4g} [{case.low:.4g}, {case.high:.4g}]",
                    "n": case.n,
                    "outcome": case.outcome,
                }
                for case in verdict.assessment.cases
            ]
        )
    console.rows(
        [
            {"control": control.name, "must be": "not supported" if control.trivial else "refuted",
             "is": control.assessment.outcome, "because": control.assessment.reason}
            for control in verdict.controls
        ]
    )  # fmt: skip
    if verdict.gates:
        console.rows([{"assumption": gate.name, "is": gate.assessment.outcome, "because": gate.assessment.reason}
                      for gate in verdict.gates])  # fmt: skip


@app.command()
def cite(study: StudyName) -> None:
    """Print BibTeX of exactly the papers a study uses."""
    typer.echo("\n\n".join(paper.bibtex() for paper in load(study).papers))


def _open(study: str, scale: str | None, results: str | None) -> Results:
    """Open a study that has results; AssayError if it has none."""
    opened = open_results(study, scale, results)
    name, stored = opened.study.name, opened.store.scales(opened.study.name)
    if opened.scale not in stored:
        there = f"there is {', '.join(map(repr, stored))}; " if stored else ""
        again = f"run: assay run {study} --scale {opened.scale}"
        raise AssayError(f"no results of study {name!r} at scale {opened.scale!r} in {opened.store}; {there}{again}")
    return opened


def _opened(names: list[str] | None, scale: str | None, results: str | None) -> list[Results]:
    """Open the named studies, or all that have results."""
    if scale is not None:
        check_scale(scale)
    if not names:
        store = Store(results_root(results))
        names = [name for name in available() if scale in store.scales(name) or (scale is None and store.scales(name))]
        if not names:
            at = f" at scale {scale!r}" if scale else ""
            again = f"run: assay run {next(iter(available()), 'STUDY')} --scale {scale or 'smoke'}"
            raise AssayError(f"no results{at} in {store}; {again}")
    return [_open(name, scale, results) for name in names]


def _complaints(opened: Results, verdicts: list[Verdict]) -> list[str]:
    """What makes `verify` fail: a control that was not refuted, an outcome other than the declared one."""
    lines = []
    for claim, verdict in zip(opened.study.claims, verdicts, strict=True):
        for control in verdict.controls:
            if not control.trivial and control.assessment.outcome != "refuted":
                lines.append(
                    f"{claim.id}: control {control.name!r} is {control.assessment.outcome}, it must be refuted"
                )
        if claim.expect and opened.scale != "smoke" and verdict.outcome != claim.expect:
            lines.append(f"{claim.id}: expected {claim.expect}, found {verdict.outcome}: {verdict.reason}")
    return lines


def _check_out(out: Path) -> None:
    """Refuse a report folder that cannot be one, before hours are spent on what goes into it."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "is not writable" if there.is_dir() else "is not a folder"
        raise AssayError(f"the report cannot be written to {str(out)!r}: {there} {why}")


def _render(opened: list[Results], out: Path) -> Path:
    from assay.report import render

    _check_out(out)
    try:
        return render(opened, out)
    except OSError as error:
        raise AssayError(f"the report cannot be written to {str(out)!r}: {error.strerror or error}") from error


def _line(error: str, message: str) -> str:
    """Kind and first line of an error."""
    return f"{error}: {message.strip().splitlines()[0]}" if message.strip() else error


_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer carries its own click in some releases


def main() -> None:
    """Run the command; every bad input ends in one line on standard error and exit status 2."""
    try:
        status = app(standalone_mode=False, prog_name="assay")
    except AssayError as error:
        status = _refuse(str(error))
    except _UsageError as error:
        status = _refuse(_usage(error))
    except OSError as error:  # a full disk, a file of another user: named by the error itself
        status = min(1, _refuse(str(error)))
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)


def _usage(error: Any) -> str:
    """Say what is wrong with the words of a command, with the nearest command or option that there is."""
    message: str = error.format_message()
    context = error.ctx
    if message.startswith("No such command"):
        return str(unknown("command", message.split("'")[1], context.command.commands))
    if message.startswith("No such option"):
        options = [name for option in context.command.params for name in option.opts if name.startswith("--")]
        return str(unknown(f"option of {context.info_name}:", error.option_name, options))
    return message


def _refuse(message: str) -> int:
    if message:
        print(f"assay: {' '.join(message.split())}", file=sys.stderr)
    return 2
