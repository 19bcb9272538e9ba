"""A whole study in forty lines: the error of a mean of n draws falls as n^(-1/2)."""

import altair as alt
import numpy as np

from assay import Claim, Control, Factor, Figure, Paper, Slope, Study, Table, Trial


def measure(pack):
    n = pack["n"]
    draws = [np.random.default_rng([seed, n]).exponential(size=(256, n)) for seed in pack.column("seed")]
    return pack.frame(error=np.sqrt([np.mean((draw.mean(axis=1) - 1) ** 2) for draw in draws]))


def errors(tables):
    return tables["errors"].rename(columns={"n": "x", "error": "value"})


def chart(tables):
    return alt.Chart(errors(tables)).mark_point().encode(alt.X("x").scale(type="log"), alt.Y("value").scale(type="log"))


study = Study(
    name="mean",
    title="The mean of n draws",
    summary="The root-mean-square error of a sample mean against the sample size.",
    papers=(Paper("demoivre1733", "Approximatio ad summam terminorum binomii", ("A. de Moivre",), 1733),),
    version="1",
    trials=(
        Trial(
            name="draw",
            factors=(Factor("n", (16, 64, 256)), Factor("seed", tuple(range(8)), packed=True)),
            tables=(Table("errors", {"error": float}),),
            run=measure,
        ),
    ),
    claims=(
        Claim(
            "MEAN-1",
            "The error of a mean of n draws is Θ(n^(-1/2))",
            "de Moivre 1733",
            Slope(-0.5),
            errors,
            (
                Control("no gain from more draws", kind=Slope(0.0)),
                Control("the gain of quasi-Monte Carlo", kind=Slope(-1.0)),
            ),
        ),
    ),
    figures=(Figure("error", "Error against sample size", "One point per seed.", chart, ("MEAN-1",)),),
)
