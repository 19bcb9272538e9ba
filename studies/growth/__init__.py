"""Growth curves of self-expanding convolutional networks: Appolinary et al. (2024), Mitchell et al. (2023)."""

from __future__ import annotations

from assay import Paper, Study
from studies.growth import identities, identities_claims, identities_figures, runs, runs_claims, runs_figures

study = Study(
    name="growth",
    title="Growth curves of self-expanding networks",
    summary="A small convolutional network trains, and now and then a score says where one more layer or a few more channels would "
    "make a natural-gradient step gain most. The papers say that growing does not disturb what was learnt, that the score ranks "
    "expansions and that growth ends at a size set by the task. The score's identities are checked exactly. Growing runs are "
    "held against what the papers leave out: static networks of the final size, and growth at random.",
    papers=(
        Paper(
            "appolinary2024self",
            "Self Expanding Convolutional Neural Networks",
            ("Blaise Appolinary", "Alex Deaconu", "Sophia Yang", "Qingze Li"),
            2024,
            arxiv="2401.05686",
        ),
        Paper(
            "mitchell2023self",
            "Self-Expanding Neural Networks",
            ("Rupert Mitchell", "Robin Menzenbach", "Kristian Kersting", "Martin Mundt"),
            2023,
            arxiv="2307.04526",
        ),
    ),
    version="2",
    trials=(*identities.TRIALS, *runs.TRIALS),
    claims=(*identities_claims.CLAIMS, *runs_claims.CLAIMS),
    figures=(*runs_figures.FIGURES, *identities_figures.FIGURES),
)
