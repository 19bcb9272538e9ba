"""The report: a static site that works from disk with the network off.

An index, a page per study with its verdicts, figures, claims and what was run, and every figure as SVG and PNG. The
same results give the same bytes: nothing on a page depends on when or where it was rendered.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import theme
from assay.errors import AssayError
from assay.forest import forest
from assay.progress import duration
from assay.results import Progress, Results
from assay.study import OUTCOMES, SCALES, Claim, Figure, Paper

if TYPE_CHECKING:
    import altair as alt
    import jinja2

    from assay.verdict import Verdict

Files = dict[str, bytes]
Page = dict[str, Any]

CARD = {"name", "title", "paper", "scale", "counts", "incomplete", "lead", "lead_title"}
"""What the index knows of a study."""
SIGNS = {"supported": "✓", "refuted": "✗", "inconclusive": "?", "void": "∅"}


def figure(results: Results, name: str) -> alt.TopLevelMixin:
    """Draw one figure of a study as an Altair chart.

    AssayError when there is no such figure, or when it cannot be drawn from what is stored.
    """
    return _drawn(results, name)[0]


def _drawn(results: Results, name: str) -> tuple[alt.TopLevelMixin, theme.Spec]:
    declared = results.study.figure(name)
    try:
        chart = declared.draw(results.tables)
        return chart, theme.specification(chart)
    except Exception as error:
        reason = str(error) if isinstance(error, AssayError) else f"{type(error).__name__}: {_first_line(error)}"
        raise AssayError(f"study {results.study.name!r}: figure {name!r} cannot be drawn: {reason}") from error


def render(results_list: Sequence[Results], out: Path) -> Path:
    """Write the site of these studies into a folder and return its index.

    All is rendered before the first file is replaced, pages last, so that a reader never sees half a report. Studies
    that were rendered into the folder before keep their pages and cards; other files there are not touched. AssayError
    when there is nothing to render, or when a figure of complete results cannot be drawn.
    """
    if not results_list:
        raise AssayError("there is nothing to report: no study has results; run: assay run STUDY --scale smoke")
    out = Path(out)
    pages = _environment()
    shared = {"light": theme.LIGHT, "dark": theme.DARK, "font": theme.FONT, "themes": _themes()}
    shared["outcomes"] = [(word, color) for word, (color, _) in theme.OUTCOMES.items()]
    files: Files = {"assets/vega.js": theme.script().encode()}
    for name in ("site.css", "site.js"):
        files[f"assets/{name}"] = pages.get_template(name).render(shared).encode()
    cards = _former_cards(out)
    html: Files = {}
    for results in sorted(results_list, key=lambda results: results.study.name):
        name = results.study.name
        page, images = _study(results)
        files |= images
        html[f"{name}.html"] = pages.get_template("study.html").render(page).encode()
        cards[name] = _card(page)
        files[f"{name}/card.json"] = json.dumps(cards[name], indent=1, ensure_ascii=False).encode()
    index = {"cards": [cards[name] for name in sorted(cards)]}
    html["index.html"] = pages.get_template("index.html").render(index).encode()
    _replace(files | html, out)
    for results in results_list:  # images of figures that the study no longer has
        for old in out.glob(f"{results.study.name}/*"):
            if old.suffix in (".svg", ".png") and f"{results.study.name}/{old.name}" not in files:
                old.unlink()
    return out / "index.html"


def _replace(files: Files, out: Path) -> None:
    """Write all files beside their places, then move each into its place, in order."""
    out.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".rendering-", dir=out))  # inside: a move never crosses a file system
    try:
        for path, content in files.items():
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            (fresh / path).write_bytes(content)
        for path in files:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(fresh / path, out / path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _environment() -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("assay"),
        autoescape=lambda name: bool(name) and str(name).endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters["number"] = _number
    pages.filters["embed"] = lambda value: Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))
    pages.globals["signs"] = SIGNS
    return pages


def _themes() -> dict[str, theme.Spec]:
    return {"light": theme.config(theme.LIGHT), "dark": theme.config(theme.DARK)}


def _number(value: float) -> str:
    """Number with three significant digits and a true minus; a dash where there is none."""
    if math.isnan(value):
        return "–"
    text = "∞" if math.isinf(value) else f"{abs(value):.3g}"
    return f"−{text}" if value < 0 else text


def _first_line(error: BaseException) -> str:
    first, *more = [*str(error).strip().splitlines(), ""]
    return f"{first} {more[0].strip()}".strip() if first.endswith(":") and more else first


def _study(results: Results) -> tuple[Page, Files]:
    """What a study's page shows, and its images."""
    study, progress, verdicts = results.study, results.progress(), results.verdicts()
    lacking = [text for name, part in progress.items() if (text := _lacking(name, part))]
    files: Files = {}
    figures = [_figure(results, declared, bool(lacking), files) for declared in study.figures]
    claims = [
        _claim(claim, verdict, [figure for figure in figures if claim.id in figure["bears_on"]], results.scale)
        for claim, verdict in zip(study.claims, verdicts, strict=True)
    ]
    for drawn in figures:
        drawn["claims"] = [claim for claim in claims if claim["id"] in drawn["bears_on"]]
    page: Page = {
        "study": study,
        "papers": [{"text": _citation(paper), "arxiv": paper.arxiv} for paper in study.papers],
        "scale": results.scale,
        "scale_note": SCALES[results.scale],
        "banner": " ".join(lacking),
        "counts": [
            (word, count) for word in OUTCOMES if (count := sum(verdict.outcome == word for verdict in verdicts))
        ],
        "claims": claims,
        "figures": figures,
        "run": _run(results, progress),
        "bibtex": "\n\n".join(paper.bibtex() for paper in study.papers),
    }
    return page, files


def _lacking(trial: str, progress: Progress) -> str:
    """Sentence that says what is missing of a trial; empty if nothing is."""
    words = {"not measured yet": progress.pending, "failed": progress.failed}
    parts = [f"{count} {word}" for word, count in words.items() if count]
    return f"Of {progress.planned} cells of trial {trial}, {' and '.join(parts)}." if parts else ""


def _card(page: Page) -> Page:
    """What the index shows of a study."""
    study = page["study"]
    lead = next((figure for figure in page["figures"] if figure["spec"]), None)
    return {
        "name": study.name,
        "title": study.title,
        "paper": page["papers"][0]["text"],
        "scale": page["scale"],
        "counts": page["counts"],
        "incomplete": bool(page["banner"]),
        "lead": lead and lead["path"],
        "lead_title": lead and lead["title"],
    }


def _former_cards(out: Path) -> dict[str, Page]:
    """Cards of the studies rendered into a folder before; one that another version wrote is left out."""
    cards = {}
    for path in out.glob("*/card.json"):
        with contextlib.suppress(ValueError):
            card = json.loads(path.read_bytes())
            if isinstance(card, dict) and set(card) == CARD:
                cards[path.parent.name] = card
    return cards


def _citation(paper: Paper) -> str:
    authors = ", ".join(paper.authors[:4]) + (" et al." if len(paper.authors) > 4 else "")
    return f"{authors}: {paper.title}. {paper.venue + ', ' if paper.venue else ''}{paper.year}."


def _figure(results: Results, declared: Figure, incomplete: bool, files: Files) -> Page:
    """What a page shows of a figure; its images are added to `files`."""
    path = f"{results.study.name}/{declared.name}"
    shown: Page = {
        "name": declared.name,
        "anchor": f"figure-{declared.name}",
        "title": declared.title,
        "caption": declared.caption,
        "bears_on": declared.claims,
        "path": path,
        "spec": None,
        "notes": "",
    }
    try:
        _, spec = _drawn(results, declared.name)
        files[f"{path}.svg"] = theme.svg(spec).encode()
    except AssayError:
        if incomplete:
            return shown
        raise
    except ValueError as error:  # a valid specification that Vega refuses
        where = f"study {results.study.name!r}: figure {declared.name!r} cannot be drawn"
        raise AssayError(f"{where}: {_first_line(error)}") from error
    files[f"{path}.dark.svg"] = theme.svg(spec, theme.DARK).encode()
    files[f"{path}.png"] = theme.png(spec)
    bare, notes = _untitled(spec)
    return shown | {"spec": bare, "notes": notes}


def _untitled(spec: theme.Spec) -> tuple[theme.Spec, str]:
    """Take the title off a specification: the page has its own, and shows the subtitle as text that wraps."""
    title = spec.get("title", "")
    lines = title.get("subtitle", "") if isinstance(title, Mapping) else ""
    notes = lines if isinstance(lines, str) else " ".join(lines)
    return {key: value for key, value in spec.items() if key != "title"}, notes


def _claim(claim: Claim, verdict: Verdict, figures: list[Page], scale: str) -> Page:
    """What a page shows of a claim."""
    assessment = verdict.assessment
    cases = assessment.cases if assessment else ()
    tried = {control.name: control.assessment for control in verdict.controls}
    controls = []
    for control in claim.controls:
        outcome = tried[control.name].outcome if control.name in tried else ""
        controls.append(
            {
                "name": control.name,
                "why": control.why,
                "must": "not be supported" if control.trivial else "be refuted",
                "outcome": outcome,
                "passed": outcome != "supported" if control.trivial else outcome == "refuted",
                "reason": tried[control.name].reason if outcome else "",
            }
        )
    spec, notes = None, ""
    if any(math.isfinite(case.estimate) for case in cases):
        spec, notes = _untitled(theme.specification(forest(claim, cases)))
    return {
        "id": claim.id,
        "anchor": "claim-" + re.sub(r"[^A-Za-z0-9_.-]", "-", claim.id),
        "statement": claim.statement,
        "source": claim.source,
        "note": claim.note,
        "kind": claim.kind.name,
        "unit": ", ".join(claim.unit),
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "surprise": claim.expect if scale != "smoke" and claim.expect not in (None, verdict.outcome) else "",
        "deciding": assessment.estimate if assessment else None,
        "cases": cases,
        "controls": controls,
        "gates": verdict.gates,
        "figures": figures,
        "spec": spec,
        "spec_notes": notes,
    }


def _run(results: Results, progress: Mapping[str, Progress]) -> Page:
    """What was run: trials, where their numbers come from, what failed."""
    study = results.study
    runs = results.store.runs(study.name, results.scale)
    runs = runs[runs["version"] == study.version]
    trials = []
    for trial in study.trials:
        packs = runs[runs["trial"] == trial.name]
        rows = results.tables[trial.tables[0].name]
        times = {name: duration(packs[f"{name}_s"].sum()) if f"{name}_s" in packs else "–" for name in ("wall", "cpu")}
        trials.append(
            {"name": trial.name, "pending": progress[trial.name].pending, "packs": len(packs)}
            | asdict(progress[trial.name])
            | {"diverged": rows.loc[rows["status"] == "diverged", "cell"].nunique()}
            | times
        )
    named = {"revision": "Code revision", "device": "Device"} | {
        name: name.removeprefix("libraries_") for name in runs.columns if name.startswith("libraries_")
    }
    facts = [(named[name], ", ".join(sorted(set(runs[name].dropna().astype(str))))) for name in named if name in runs]
    failures = results.store.failures(study.name, results.scale)
    failures = failures.assign(line=[f"{row.error}: {row.message}".splitlines()[0] for row in failures.itertuples()])
    grouped = [
        {"error": line, "cells": len(rows), "factors": rows["factors"].min()}
        for line, rows in failures.groupby("line", sort=True)
    ]
    return {"trials": trials, "facts": facts, "failures": grouped}
