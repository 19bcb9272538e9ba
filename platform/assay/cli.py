"""The `assay` command. Exit status: 0 done; 1 something failed or a control was not refuted; 2 bad input."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.api import open_results, results_root
from assay.errors import AssayError, unknown
from assay.plan import cells, makespan, plan
from assay.progress import duration
from assay.registry import available, load
from assay.store import Store
from assay.study import SCALES, check_scale

if TYPE_CHECKING:
    import pandas as pd

    from assay.results import Results
    from assay.study import Study
    from assay.verdict import Verdict

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Put the claims of deep-learning theory papers to the test.",
)


class Format(StrEnum):
    """How a table is printed."""

    table = "table"
    csv = "csv"
    json = "json"


StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="An installed study, or a .py file that defines one.")]
StudyNames = Annotated[list[str] | None, typer.Argument(metavar="[STUDY]...", help="Default: all that have results.")]
RootOption = Annotated[str | None, typer.Option("--results", help="Folder or URI [default: $ASSAY_RESULTS or results].")]
ScaleOption = Annotated[str | None, typer.Option("--scale", help="smoke, laptop or cluster [default: the largest stored].")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the rendered report.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Packs at a time [default: one per core].")]


@app.command("list")
def list_() -> None:
    """List the studies: their claims, and cells and expected cost at each scale."""
    rows = []
    for name in available():
        study = load(name)
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
    _print_rows(rows)


@app.command("plan")
def plan_(
    study: StudyName,
    scale: Annotated[str, typer.Option(help="smoke, laptop or cluster.")] = "smoke",
    results: RootOption = None,
    workers: WorkersOption = None,
) -> None:
    """Show what `run` would do: cells, packs, memory, expected time."""
    import os

    from assay.results import Results

    declared = load(study)
    opened = Results(declared, check_scale(scale), Store(results_root(results)))
    packs = plan(declared, scale, opened.stored())
    rows = []
    for trial in declared.trials:
        mine = [pack for pack in packs if pack.trial == trial.name]
        planned = len(cells(declared, trial, scale))
        rows.append(
            {
                "trial": trial.name,
                "cells": planned,
                "stored": planned - sum(len(pack) for pack in mine),
                "packs to run": len(mine),
                "largest pack": f"{max((pack.expected_bytes for pack in mine), default=0) / 2**20:.0f} MiB",
                "core time": duration(sum(pack.expected_s for pack in mine)),
                "GPU share": trial.gpus.get(scale, 0.0),
            }
        )
    _print_rows(rows)
    count = workers or os.cpu_count() or 1
    typer.echo(f"expected: {duration(makespan(packs, count))} on {count} workers, after Ray has started")


@app.command()
def run(
    study: StudyName,
    scale: Annotated[str, typer.Option(help="smoke, laptop or cluster.")] = "smoke",
    results: RootOption = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT.")] = None,
    workers: WorkersOption = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed packs again.")] = False,
    out: OutOption = Path("report"),
) -> None:
    """Measure a study, judge its claims, render the report; run again to resume."""
    from assay import sweep

    root = results_root(results)
    declared = load(study)
    check_scale(scale)
    page = out / f"{declared.name}.html"
    try:
        done = sweep.run(study, scale, root, address=address, workers=workers, retry_failed=retry_failed)
    except KeyboardInterrupt:
        again = f"assay run {study} --scale {scale}" + (f" --results {results}" if results else "")
        typer.echo(f"interrupted; what was measured is stored. Go on with: {again}", err=True)
        sys.stderr.flush()
        raise typer.Exit(130) from None
    opened = open_results(study, scale, results)
    verdicts = opened.verdicts()
    _print_verdicts(opened, verdicts)
    if done.packs or not page.exists():
        _render([opened], out)
    if done.packs:
        typer.echo(f"measured {done.cells - done.failed} cells in {done.packs} packs, {duration(done.wall_s)}", err=True)
    else:
        typer.echo("nothing to measure: every cell is stored", err=True)
    typer.echo(f"report: {page}")
    failures = opened.store.failures(declared.name, scale)
    if len(failures):
        first = failures.iloc[0]
        typer.echo(
            f"{len(failures)} cells failed, the first with {first['error']}: {str(first['message']).splitlines()[:1]}; "
            f"tracebacks: assay query 'select * from {declared.name}.failures'; again with --retry-failed",
            err=True,
        )
        raise typer.Exit(1)


@app.command()
def verify(
    studies: StudyNames = None,
    scale: ScaleOption = None,
    results: RootOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Print the verdict table; exit status 1 if a control is not refuted or a declared expectation fails."""
    import pandas as pd

    from assay.results import verdict_frame

    frames, complaints = [], []
    for opened in _opened(studies, scale, results):
        verdicts = opened.verdicts()
        complaints += _complaints(opened, verdicts)
        if format is Format.table:
            _print_verdicts(opened, verdicts)
        frames.append(verdict_frame(opened.study, verdicts))
    if format is not Format.table:
        _print_frame(pd.concat(frames, ignore_index=True), format)
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
    format: FormatOption = Format.table,
) -> None:
    """Ask in SQL over the stored tables: STUDY is its primary table, STUDY.TABLE any other, STUDY.runs its packs."""
    from assay.api import query as ask

    if scale is not None:
        check_scale(scale)
    _print_frame(ask(statement, scale=scale, results=results), format)


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
    opened = open_results(study, scale, results)
    verdict = judge_claim(declared, opened.tables, opened.progress())
    typer.echo(f"{declared.id}  {declared.statement}\nsource: {declared.source}")
    typer.echo(f"verdict: {verdict.outcome} ({verdict.reason})")
    if declared.note:
        typer.echo(f"note: {declared.note}")
    if verdict.assessment:
        _print_rows(
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
    _print_rows(
        [
            {"control": control.name, "must be": "not supported" if control.trivial else "refuted",
             "is": control.assessment.outcome, "because": control.assessment.reason}
            for control in verdict.controls
        ]
    )  # fmt: skip


@app.command()
def cite(study: StudyName) -> None:
    """Print BibTeX of exactly the papers a study uses."""
    typer.echo("\n\n".join(paper.bibtex() for paper in load(study).papers))


def _opened(names: list[str] | None, scale: str | None, results: str | None) -> list[Results]:
    """Open the named studies, or all that have results."""
    if scale is not None:
        check_scale(scale)
    if not names:
        store = Store(results_root(results))
        names = [name for name in available() if scale in store.scales(name) or (scale is None and store.scales(name))]
        if not names:
            raise AssayError(f"no results in {store.root}; run: assay run {next(iter(available()), 'STUDY')} --scale smoke")
    return [open_results(name, scale, results) for name in names]


def _complaints(opened: Results, verdicts: list[Verdict]) -> list[str]:
    """What makes `verify` fail: a control that was not refuted, an outcome other than the declared one."""
    lines = []
    for claim, verdict in zip(opened.study.claims, verdicts, strict=True):
        for control in verdict.controls:
            if not control.trivial and control.assessment.outcome != "refuted":
                lines.append(f"{claim.id}: control {control.name!r} is {control.assessment.outcome}, it must be refuted")
        if claim.expect and opened.scale != "smoke" and verdict.outcome != claim.expect:
            lines.append(f"{claim.id}: expected {claim.expect}, found {verdict.outcome}: {verdict.reason}")
    return lines


def _render(opened: list[Results], out: Path) -> Path:
    from assay.report import render

    try:
        return render(opened, out)
    except OSError as error:
        raise AssayError(f"the report cannot be written to {str(out)!r}: {error.strerror or error}") from error


def _print_verdicts(opened: Results, verdicts: list[Verdict]) -> None:
    from assay.results import verdict_frame

    frame = verdict_frame(opened.study, verdicts)
    _print_rows(
        [
            {
                "claim": row.claim,
                "verdict": row.verdict,
                "prediction": f"{row.prediction:.3g}",
                "estimate": f"{row.estimate:.3g} [{row.low:.3g}, {row.high:.3g}]",
                "n": row.n,
                "controls": f"{row.controls_refuted}/{row.controls} refuted",
                "reason": row.reason,
            }
            for row in frame.itertuples()
        ],
        title=f"{opened.study.title}, scale {opened.scale}",
    )


_STYLES = {"supported": "green", "refuted": "red", "inconclusive": "yellow", "void": "magenta"}


def _print_rows(rows: list[dict[str, object]], title: str | None = None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value), style=_STYLES.get(str(value), "")) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _print_frame(frame: pd.DataFrame, format: Format) -> None:
    if format is Format.csv:
        typer.echo(frame.to_csv(index=False), nl=False)
    elif format is Format.json:
        typer.echo(frame.to_json(orient="records", indent=2, double_precision=15))
    else:
        _print_rows([{str(key): value for key, value in row.items()} for row in frame.to_dict("records")])


_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer carries its own click in some releases


def main() -> None:
    """Run the command; every bad input ends in one line on standard error and exit status 2."""
    try:
        status = app(standalone_mode=False)
    except AssayError as error:
        status = _refuse(str(error))
    except _UsageError as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message.startswith("No such command"):
            names = [(command.name or command.callback.__name__) for command in app.registered_commands]  # type: ignore
            message = str(unknown("command", message.split("'")[1], names))
        status = _refuse(message) if message else 2
    except typer.Abort:
        status = 130
    sys.exit(status or 0)


def _refuse(message: str) -> int:
    print(f"assay: {' '.join(message.split())}", file=sys.stderr)
    return 2
