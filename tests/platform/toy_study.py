"""A study of power laws, with a figure of every kind and a claim of every verdict; found by its file."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from assay import Bound, Claim, Control, Factor, Figure, Gate, Pack, Paper, Slope, Study, Table, Trial, charts
from assay.results import Tables

EXPONENTS = {"kernel": -0.5, "feature": 0.0}


def measure(pack: Pack) -> pd.DataFrame:
    """A power law with lognormal noise, one draw per cell from its own seed; one cell diverges."""
    moved = []
    for width, arm, seed in zip(*map(pack.column, ("width", "arm", "seed")), strict=True):
        noise = np.random.default_rng([seed, width, len(arm)]).normal(0.0, 0.05)
        moved.append(width ** EXPONENTS[arm] * np.exp(noise) if (width, arm, seed) != (64, "kernel", 0) else np.inf)
    return pack.frame(moved=np.array(moved), accuracy=np.tanh(np.log(pack.column("width"))))


def rows(tables: Tables) -> pd.DataFrame:
    frame = tables["toy"].rename(columns={"width": "x", "moved": "value"})
    return frame.assign(prediction=frame["arm"].map(EXPONENTS))


def without_divergence(tables: Tables) -> pd.DataFrame:
    return rows(tables).query("x > 64")


def means(tables: Tables) -> pd.DataFrame:
    return charts.summarise(tables["toy"], ["arm", "width"], "moved", "seed")


def law(tables: Tables) -> pd.DataFrame:
    frame = means(tables)[["arm", "width"]]
    return frame.assign(value=frame["width"] ** frame["arm"].map(EXPONENTS))


def draw_scaling(tables: Tables) -> alt.TopLevelMixin:
    return charts.scaling(
        means(tables),
        law(tables),
        x="width",
        color="arm",
        facet="arm",
        x_title="width n",
        y_title="‖Δh‖ / √n",
        title="Movement of features",
        subtitle="Eight seeds per point",
    )


def draw_heatmap(tables: Tables) -> alt.TopLevelMixin:
    return charts.heatmap(
        means(tables),
        x="width",
        y="arm",
        x_title="width n",
        y_title="arm",
        value_title="‖Δh‖",
        title="Plane",
        log_x=True,
    )


def draw_parity(tables: Tables) -> alt.TopLevelMixin:
    points = means(tables).merge(law(tables), on=["arm", "width"], suffixes=("", "_theory"))
    titles = {"x_title": "predicted", "y_title": "measured", "title": "Parity"}
    return charts.parity(points, x="value_theory", color="arm", log=True, margin=1.2, **titles)  # type: ignore[arg-type]


WRONG = (
    Control("half the exponent", kind=Slope(-0.25), why="a law nobody believes"),
    Control(
        "no movement", lambda tables: without_divergence(tables).assign(value=lambda f: 1 / f["x"]), why="<b>broken</b>"
    ),
)
study = Study(
    name="toy",
    title="A toy & its <law>",
    summary="Features move as a power of the width.",
    papers=(Paper("toy2020", "Toys", ("A. Author", "B. Author"), 2020, "Toy Conference", "2001.00001"),),
    version="1",
    trials=(
        Trial(
            "train",
            (
                Factor("width", (64, 128, 256, 512)),
                Factor("arm", ("feature", "kernel"), packed=True),
                Factor("seed", tuple(range(8)), packed=True),
            ),
            (Table("toy", {"moved": float, "accuracy": float}),),
            measure,
        ),
    ),
    claims=(
        Claim("TOY-1", "Features move as theory says.", "Thm. 1", Slope(), without_divergence, WRONG, cases=("arm",)),
        Claim("TOY-2", "Features never move.", "Thm. 2", Slope(-1.0), without_divergence, WRONG, expect="supported"),
        Claim("TOY-3", "Every run is finite.", "Sec. 3", Bound(upper=2.0, every_row=True), rows, WRONG, note="A note."),
        Claim(
            "TOY-4",
            "Void without its assumption.",
            "Sec. 4",
            Slope(),
            without_divergence,
            WRONG,
            cases=("arm",),
            gates=(Gate("accuracy above two", lambda t: rows(t).assign(value=t["toy"]["accuracy"]), Bound(lower=2.0)),),
        ),
    ),
    figures=(
        Figure("scaling", "Movement of features", "Points fall on the line.", draw_scaling, ("TOY-1", "TOY-2")),
        Figure("plane", "The plane", "Every cell has its number.", draw_heatmap),
        Figure("parity", "Measured against predicted", "All on one line.", draw_parity, ("TOY-1",)),
    ),
)
