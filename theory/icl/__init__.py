"""In-context learning: latent-variable tasks, exact Bayesian model averaging, attention limits, and small transformers.

`tasks` makes prompts, `bayes` and `regression` predict them exactly, `attention`, `mixtures` and `depth` hold the paper's
constructions, `layouts`, `gpt` and `pretraining` the networks. Source: Zhang, Zhang, Yang & Wang 2023, arXiv:2305.19420.
"""
