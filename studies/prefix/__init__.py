"""Prefix learning and NTK-attention: Liang, Shi, Song & Yang (2024)."""

from __future__ import annotations

from assay import Paper, Study
from studies.prefix import (
    approximation,
    approximation_claims,
    approximation_figures,
    kernel,
    kernel_claims,
    kernel_figures,
    tuning,
    tuning_claims,
    tuning_figures,
)

study = Study(
    name="prefix",
    title="NTK-attention and the infinite-prefix limit",
    summary="A prefix of m trainable rows stands before the tokens of a frozen attention layer. The paper says that learning such "
    "a prefix is linear in a fixed kernel once m is large, and that any prefix, however long, can be folded into d² + d numbers "
    "per head, with an error that falls as the prefix grows. Here the kernel, the movement of prefix vectors and the loss are "
    "held against closed forms; folding is held against exact attention; and folded prefixes are fine-tuned beside LoRA, "
    "P-Tuning v2 and full fine-tuning.",
    papers=(
        Paper(
            "liang2024infinite",
            "Toward Infinite-Long Prefix in Transformer",
            ("Yingyu Liang", "Zhenmei Shi", "Zhao Song", "Chiwun Yang"),
            2024,
            arxiv="2406.14036",
        ),
        Paper(
            "liu2022ptuning",
            "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks",
            ("Xiao Liu", "Kaixuan Ji", "Yicheng Fu", "Weng Lam Tam", "Zhengxiao Du", "Zhilin Yang", "Jie Tang"),
            2022,
            "Proceedings of the 60th Annual Meeting of the Association for Computational Linguistics",
            "2110.07602",
        ),
        Paper(
            "hu2022lora",
            "LoRA: Low-Rank Adaptation of Large Language Models",
            (
                "Edward J. Hu",
                "Yelong Shen",
                "Phillip Wallis",
                "Zeyuan Allen-Zhu",
                "Yuanzhi Li",
                "Shean Wang",
                "Lu Wang",
                "Weizhu Chen",
            ),
            2022,
            "International Conference on Learning Representations",
            "2106.09685",
        ),
    ),
    version="2",
    trials=(*kernel.TRIALS, *approximation.TRIALS, *tuning.TRIALS),
    claims=(*kernel_claims.CLAIMS, *approximation_claims.CLAIMS, *tuning_claims.CLAIMS),
    figures=(*kernel_figures.FIGURES, *approximation_figures.FIGURES, *tuning_figures.FIGURES),
)
