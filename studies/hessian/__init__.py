"""Hessian bulk and outliers: Sagun, Evci, Güney, Dauphin & Bottou (2017); Sagun, Bottou & LeCun (2016)."""

from __future__ import annotations

from assay import Paper, Study
from studies.hessian.claims import CLAIMS
from studies.hessian.figures import FIGURES
from studies.hessian.trials import TRIALS

study = Study(
    name="hessian",
    title="Bulk and outliers of the Hessian",
    summary="The Hessian of a trained network's loss has most of its eigenvalues near zero, the bulk, and a few large ones, "
    "the outliers. The papers say that more parameters merely scale the bulk, that the data alone, by its classes, "
    "decide the outliers, and that large and small batches end in one basin. Here spectra of networks trained on "
    "Gaussian clusters and handwritten digits are computed, whole or at their ends, and these sentences are tested, "
    "and one that they leave out: under cross entropy the outliers fade as 1/(η t), so that networks can only be "
    "compared after equally long training.",
    papers=(
        Paper(
            "sagun2017hessian",
            "Empirical Analysis of the Hessian of Over-Parametrized Neural Networks",
            ("Levent Sagun", "Utku Evci", "V. Uğur Güney", "Yann Dauphin", "Léon Bottou"),
            2017,
            arxiv="1706.04454",
        ),
        Paper(
            "sagun2016eigenvalues",
            "Eigenvalues of the Hessian in Deep Learning: Singularity and Beyond",
            ("Levent Sagun", "Léon Bottou", "Yann LeCun"),
            2016,
            arxiv="1611.07476",
        ),
        Paper(
            "papyan2020traces",
            "Traces of Class/Cross-Class Structure Pervade Deep Learning Spectra",
            ("Vardan Papyan",),
            2020,
            arxiv="2008.11865",
        ),
        Paper(
            "ghorbani2019investigation",
            "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density",
            ("Behrooz Ghorbani", "Shankar Krishnan", "Ying Xiao"),
            2019,
            "International Conference on Machine Learning",
            "1901.10159",
        ),
        Paper(
            "baik2005phase",
            "Phase transition of the largest eigenvalue for nonnull complex sample covariance matrices",
            ("Jinho Baik", "Gérard Ben Arous", "Sandrine Péché"),
            2005,
            "Annals of Probability",
            "math/0403022",
        ),
    ),
    version="1",
    trials=TRIALS,
    claims=CLAIMS,
    figures=FIGURES,
)
