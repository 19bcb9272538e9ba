"""Width scaling under abc-parametrizations: Yang & Hu, Tensor Programs IV (ICML 2021)."""

from __future__ import annotations

from assay import Paper, Study
from studies.width.claims import CLAIMS
from studies.width.figures import FIGURES
from studies.width.trials import TRIALS

study = Study(
    name="width",
    title="Width scaling under abc-parametrizations",
    summary="An abc-parametrization says how initial weights, multipliers and the learning rate depend on the width n: "
    "W^l = n^(-a_l) w^l, w^l ~ N(0, n^(-2 b_l)), learning rate η n^(-c). The paper classifies them all: as n grows, a "
    "network blows up, or does not train, or becomes a kernel method, or learns features, and one number r tells which. "
    "Here networks of growing width are trained for a few steps on handwritten digits, and the exponents with "
    "which their activations, outputs, kernels and best learning rates change are held against the paper's.",
    papers=(
        Paper(
            "yang2021tp4",
            "Tensor Programs IV: Feature Learning in Infinite-Width Neural Networks",
            ("Greg Yang", "Edward J. Hu"),
            2021,
            "International Conference on Machine Learning",
            "2011.14522",
        ),
        Paper(
            "jacot2018ntk",
            "Neural Tangent Kernel: Convergence and Generalization in Neural Networks",
            ("Arthur Jacot", "Franck Gabriel", "Clément Hongler"),
            2018,
            "Advances in Neural Information Processing Systems",
            "1806.07572",
        ),
        Paper(
            "yang2022mutransfer",
            "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer",
            (
                "Greg Yang", "Edward J. Hu", "Igor Babuschkin", "Szymon Sidor", "Xiaodong Liu", "David Farhi",
                "Nick Ryder", "Jakub Pachocki", "Weizhu Chen", "Jianfeng Gao",
            ),
            2022,
            arxiv="2203.03466",
        ),
    ),
    version="1",
    trials=TRIALS,
    claims=CLAIMS,
    figures=FIGURES,
)  # fmt: skip
