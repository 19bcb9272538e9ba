"""Data with a known answer, for the tests of verdicts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from assay.verdict import Assessment, Estimate

INF, NAN = math.inf, math.nan
SEED = ("seed",)


def one_row_per_seed(values, **columns) -> pd.DataFrame:
    return pd.DataFrame({"seed": np.arange(len(values)), "value": values, **columns})


def around(mean: float, sd: float = 0.1, n: int = 8, seed: int = 0) -> np.ndarray:
    """Numbers whose sample mean and standard deviation are exactly these."""
    z = np.random.default_rng(seed).normal(size=n)
    return mean + sd * (z - z.mean()) / z.std(ddof=1)


def power_law(exponents, widths=(64, 128, 256, 512), noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """One exact (or noisy) power law per seed, each with its own constant."""
    rng = np.random.default_rng(seed)
    rows = [
        {"seed": s, "x": float(n), "value": math.exp(s) * n**exponent * math.exp(noise * rng.normal())}
        for s, exponent in enumerate(exponents)
        for n in widths
    ]
    return pd.DataFrame(rows)


def sole(assessment: Assessment) -> Estimate:
    assert assessment.estimate is not None
    assert assessment.cases == (assessment.estimate,)
    return assessment.estimate
