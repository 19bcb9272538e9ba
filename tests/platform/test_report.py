"""The report: what a page says, and that the same results give the same bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest

from assay import (
    Bound,
    Claim,
    Control,
    Equality,
    Figure,
    NonInferiority,
    Ordering,
    Proportion,
    Slope,
    Study,
    Trend,
    charts,
)
from assay.errors import AssayError
from assay.forest import region
from assay.plan import plan
from assay.registry import load
from assay.report import figure, render
from assay.results import Progress, Results, Tables

STUDY = load(str(Path(__file__).with_name("toy_study.py")))
WRONG = (Control("half the exponent", kind=Slope(-0.25)), Control("no movement", kind=Slope(0.0)))
RUN = {
    "version": "1", "device": "x86_64 CPU", "revision": "0123456789ab", "libraries_torch": "2.13.0",
    "wall_s": 61.0, "cpu_s": 30.0,
}  # fmt: skip


class Ledger:
    """The part of a store that a report reads besides the tables."""

    def __init__(self, failed: list[str]) -> None:
        self.failed = failed

    def runs(self, study: str, scale: str) -> pd.DataFrame:
        return pd.DataFrame([{"trial": "train", "pack": f"train-{index}", "cells": 16, **RUN} for index in range(4)])

    def failures(self, study: str, scale: str) -> pd.DataFrame:
        columns = ["cell", "pack", "factors", "error", "message", "traceback"]
        told = ["train-9", '{"width": 512}', "ValueError", "no luck\nand a second line", "Traceback"]
        return pd.DataFrame([[cell, *told] for cell in self.failed], columns=columns)


class InMemory(Results):
    """Results of a study measured in this process, all of it or the widths up to `largest`."""

    def __init__(self, study: Study, largest: int = 10**6, failed: int = 0) -> None:
        packs = plan(study, "laptop")
        done = [study.run_pack(pack)["toy"] for pack in packs if pack["width"] <= largest]
        frame = pd.concat(done, ignore_index=True)
        planned = sum(len(pack) for pack in packs)
        self.study, self.scale = study, "laptop"
        self.tables = Tables(study, lambda name: frame)
        self.counts = {"train": Progress(planned, len(frame), failed)}
        self.store = Ledger([f"cell{index}" for index in range(failed)])  # type: ignore[assignment]

    def progress(self) -> dict[str, Progress]:
        return self.counts


@pytest.fixture(scope="module")
def results() -> Results:
    return InMemory(STUDY)


@pytest.fixture(scope="module")
def site(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render([results], tmp_path_factory.mktemp("site")).parent


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What a page says


def test_the_verdict_table_has_every_claim_with_its_numbers(site: Path, results: Results) -> None:
    page = text(site / "toy.html")
    table = page[page.index("table-verdicts") : page.index('id="figures"')]
    for claim, verdict in zip(STUDY.claims, results.verdicts(), strict=True):
        (row,) = re.findall(rf'<tr>\s*<th scope="row"><a href="#claim-{claim.id}">.*?</tr>', table, re.DOTALL)
        assert claim.statement in row
        assert claim.source in row
        assert f'<span class="badge {verdict.outcome}">' in row
        assert f"</span>{verdict.outcome}</span>" in row
        assert f'<td class="reason">{verdict.reason}</td>' in row
        assert verdict.assessment is not None
        deciding = verdict.assessment.estimate
        assert deciding is not None
        shown = "∞" if np.isinf(deciding.estimate) else f"{deciding.estimate:.3g}".replace("-", "−")
        assert f"{shown} <span" in row
    assert "expected: supported" in table


def test_claims_show_controls_gates_notes_and_cases(site: Path) -> None:
    page = text(site / "toy.html")
    first, second, third, fourth = (
        page[page.index(f'id="claim-TOY-{index}"') :].split("</article>")[0] for index in (1, 2, 3, 4)
    )
    assert "a law nobody believes" in first
    assert re.search(r'badge supported"><span class="sign" aria-hidden="true">✓</span>refuted', first)
    assert re.search(r'badge refuted"><span class="sign" aria-hidden="true">✗</span>supported', second)
    assert "arm=kernel" in first
    assert 'data-chart="chart-claim-TOY-1"' in first
    (spec,) = re.findall(r'data-chart="chart-claim-TOY-1">(.*?)</script>', first)
    assert [row["case"] for row in json.loads(spec)["data"]["values"]] == ["feature", "kernel"]
    assert "Cases: arm." in first
    assert "A note." in third
    assert "data-chart" not in third, "an infinite estimate has no forest plot"
    assert "accuracy above two" in fourth


def test_what_was_run_is_told(site: Path) -> None:
    page = text(site / "toy.html")
    run = page[page.index('id="run"') :]
    cells = re.findall(r'<td class="num">(.*?)</td>', run)
    assert cells == ["64", "64", "1", "0", "0", "4", "4 min 4 s", "2 min 0 s"]
    for fact in ("0123456789ab", "x86_64 CPU", "2.13.0", "laptop", "@inproceedings{toy2020"):
        assert fact in run
    assert "Incomplete" not in page


def test_text_of_a_study_is_escaped(site: Path) -> None:
    page = text(site / "toy.html")
    assert "A toy &amp; its &lt;law&gt;" in page
    assert "&lt;b&gt;broken&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<law>" not in page


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.glob("*.html"):
        page = text(path)
        anchors = set(re.findall(r'\bid="([^"]+)"', page))
        for attribute, target in re.findall(r'\b(href|src|srcset)="([^"]+)"', page):
            if target.startswith("https://arxiv.org/") and attribute == "href":
                continue
            if target.startswith("#"):
                assert target[1:] in anchors, target
            elif target != "data:,":
                assert (site / target).is_file(), target
    for image in ("toy/scaling.svg", "toy/scaling.dark.svg", "toy/scaling.png", "toy/plane.svg", "toy/parity.png"):
        assert (site / image).stat().st_size > 1000


def test_every_figure_has_its_claims_and_falls_back_to_an_image(site: Path) -> None:
    page = text(site / "toy.html")
    part = page[page.index('id="figure-scaling"') :].split("</figure>")[0]
    assert re.search(r"<noscript><picture>.*toy/scaling\.svg.*</noscript>", part)
    assert re.findall(r'href="#claim-([^"]+)"', part) == ["TOY-1", "TOY-2"]
    (spec,) = re.findall(r'data-chart="chart-scaling">(.*?)</script>', part)
    assert "<" not in spec
    assert "title" not in json.loads(spec)
    assert "Eight seeds per point. Points: measured" in part


def test_the_index_has_a_card_per_study(site: Path) -> None:
    index = text(site / "index.html")
    assert index.count('<article class="card">') == 1
    assert "</span>3 void</span>" in index
    assert 'srcset="toy/scaling.dark.svg"' in index
    assert "Toys. Toy Conference, 2020." in index


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (Slope(-0.5), {}),
        (Slope(-0.4, band=(np.inf, 0)), {}),
        (Slope(0.0, band=(0, np.inf)), {}),
        (Equality(0.2, prediction=0.1), {}),
        (Equality(0.05), {"prediction": 0.12}),
        (Bound(upper=1.0), {}),
        (Bound(lower=1.0), {}),
        (Ordering("less"), {"reference": 2.0}),
        (Ordering("greater", margin=0.1), {"reference": 2.0}),
        (NonInferiority(0.1), {"reference": 0.0}),
        (Trend("increasing"), {}),
        (Trend("decreasing", at_least=0.5), {}),
        (Proportion(at_least=0.5), {"value": 1.0}),
        (Proportion(at_most=0.5), {"value": 1.0}),
    ],
    ids=lambda item: f"{item.name}" if hasattr(item, "name") else "",
)
def test_the_band_of_a_forest_plot_is_the_region_that_decides(kind: Any, columns: dict[str, float]) -> None:
    from assay.verdict import assess

    frame = pd.DataFrame([(x, seed) for x in (64, 128, 256, 512) for seed in range(40)], columns=["x", "seed"])
    noise = np.random.default_rng(3).normal(0, 0.01, len(frame))
    frame = frame.assign(value=frame["x"] ** -0.5 * np.exp(noise)).assign(**columns)
    (case,) = assess(kind, frame, ["seed"]).cases
    low, high = region(kind, case.prediction)
    assert case.outcome in ("supported", "refuted"), case.reason
    assert (low <= case.low and case.high <= high) == (case.outcome == "supported")
    assert (case.high < low or case.low > high) == (case.outcome == "refuted")


# The same results, the same bytes; nothing else touched


def test_rendering_again_gives_the_same_bytes(site: Path, tmp_path: Path) -> None:
    render([InMemory(STUDY)], tmp_path)
    first = tree(site)
    assert tree(tmp_path) == first
    render([InMemory(STUDY)], tmp_path)
    assert tree(tmp_path) == first


def test_other_files_stay_and_images_of_former_figures_go(tmp_path: Path) -> None:
    for name in ("results/toy/laptop/toy/part.parquet", "notes.txt", "toy/notes.txt", "toy/former.svg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    render([InMemory(replace(STUDY, figures=STUDY.figures[1:2]))], tmp_path)
    mine = {name for name, content in tree(tmp_path).items() if content == b"mine"}
    assert mine == {"results/toy/laptop/toy/part.parquet", "notes.txt", "toy/notes.txt"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_study_rendered_before_keeps_its_card(tmp_path: Path) -> None:
    few = replace(STUDY, figures=())
    render([InMemory(few)], tmp_path)
    render([InMemory(replace(few, name="second", title="Second study"))], tmp_path)
    index = text(tmp_path / "index.html")
    assert index.count('<article class="card">') == 2
    assert index.index("toy.html") > index.index("second.html")
    (tmp_path / "toy" / "card.json").write_text('{"of": "another version"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{")
    render([InMemory(replace(few, name="second", title="Second study"))], tmp_path)
    assert text(tmp_path / "index.html").count('<article class="card">') == 1


def test_a_report_that_fails_leaves_the_former_one_alone(tmp_path: Path) -> None:
    render([InMemory(replace(STUDY, figures=()))], tmp_path)
    before = tree(tmp_path)
    broken = Figure("broken", "Broken", "…", lambda tables: 1 / 0)  # type: ignore[arg-type,return-value]
    with pytest.raises(AssayError):
        render([InMemory(replace(STUDY, figures=(broken,)))], tmp_path)
    assert tree(tmp_path) == before


# Figures that fail, results that are not complete


def no_rows(tables: Tables) -> alt.TopLevelMixin:
    widest = tables["toy"].query("width == 512")
    return charts.scaling(widest, x="width", y="moved", x_title="n", y_title="y", title="Wide")


def no_spec(tables: Tables) -> alt.TopLevelMixin:
    return alt.Chart(tables["toy"]).mark_point().encode(x="nonsense")


def no_vega(tables: Tables) -> alt.TopLevelMixin:
    return alt.Chart(alt.Data(values=[{"a": 1}])).transform_filter("unknown(datum.a)").mark_point()


@pytest.mark.parametrize(
    ("draw", "cause"),
    [
        (lambda tables: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda tables: tables["nonsense"], "unknown table of study 'toy': 'nonsense'"),
        (no_spec, "ValueError: "),
        (no_vega, "Unrecognized function: unknown"),
    ],
    ids=["raises", "no such table", "no valid chart", "refused by Vega"],
)
def test_a_figure_that_cannot_be_drawn_is_named_with_its_cause(draw: Any, cause: str, tmp_path: Path) -> None:
    study = replace(STUDY, figures=(Figure("broken", "Broken", "…", draw),))
    with pytest.raises(AssayError, match="study 'toy': figure 'broken' cannot be drawn: ") as caught:
        render([InMemory(study)], tmp_path)
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not tree(tmp_path)


def test_incomplete_results_say_so_and_leave_room_for_their_figures(tmp_path: Path) -> None:
    wide = Figure("wide", "The widest", "…", no_rows)
    render([InMemory(replace(STUDY, figures=(wide, STUDY.figures[0])), largest=256, failed=3)], tmp_path)
    page = text(tmp_path / "toy.html")
    assert "Of 64 cells of trial train, 13 not measured yet and 3 failed." in page[: page.index('id="verdicts"')]
    assert "Not measured yet" in page[page.index('id="figure-wide"') : page.index('id="figure-scaling"')]
    assert 'data-chart="chart-scaling"' in page
    assert "ValueError: no luck" in page
    assert "and a second line" not in page
    assert not (tmp_path / "toy/wide.svg").exists()
    assert "Incomplete" in text(tmp_path / "index.html")


def test_claims_without_data_list_their_controls_as_not_measured(tmp_path: Path) -> None:
    def lacking(tables: Tables) -> pd.DataFrame:
        raise KeyError(f"no width 512 in {len(tables['toy'])} rows")

    claim = Claim("TOY-9", "Nothing is known.", "Sec. 9", Slope(0.0), lacking, WRONG)
    render([InMemory(replace(STUDY, claims=(claim,), figures=()), largest=64)], tmp_path)
    page = text(tmp_path / "toy.html")
    assert page.count("not measured</td>") == 2
    assert "not measured: 0 of 64 cells failed, 48 have not run" in page


def test_nothing_to_render_and_unknown_figures_are_errors(results: Results, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="there is nothing to report"):
        render([], tmp_path)
    with pytest.raises(AssayError, match="unknown figure of study 'toy': 'scalin'; did you mean 'scaling'"):
        figure(results, "scalin")
    assert isinstance(figure(results, "scaling"), alt.FacetChart)
