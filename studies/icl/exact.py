"""Trials that need no training: exact Bayesian model averaging, its regret on every path, and regression.

Positions t count examples from 1. Regret is cumulative, in nats: the paper's regret_t is this number over t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay import Factor, Pack, Table, Trial, scaled, seeds
from studies.icl.exact_limits import LIMIT_TRIALS

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

C0 = 0.02
"""Least probability of a response (Assumption 5.2)."""
PREDICTORS = ("bma", "wrong prior", "tempered", "leak", "plug-in", "prior average", "counts")
"""Bayesian model averaging; three ways to break it; three rivals that know the concepts, or only the prompt."""
RIVALS = ("bma", "plug-in", "prior average", "counts")
CHECKED = 20
"""Prompts of each cell on which the slow second computation of the predictive is made."""


def positions(T: int) -> list[int]:
    """Positions recorded: 1, 2, 3, 4, 6, 8, 12, 16, ... up to T, and T."""
    found = {2**i for i in range(T.bit_length())} | {3 * 2**i for i in range(T.bit_length())} | {T}
    return sorted(t for t in found if t <= T)


def prior_law(name: str, M: int) -> Tensor:
    """P_Z over M concepts: "uniform", or "ranked" with P_Z(z) ∝ z, z = 1..M; "reversed" turns the ranks round."""
    import torch

    weight = torch.ones(M, dtype=torch.float64) if name == "uniform" else torch.arange(1.0, M + 1, dtype=torch.float64)
    weight = weight.flip(0) if name == "reversed" else weight
    return weight / weight.sum()


def wrong_prior(name: str, M: int) -> Tensor:
    """Another law over the same concepts."""
    return prior_law("ranked" if name == "uniform" else "reversed", M)


def worst(values: Tensor, at: Tensor) -> Tensor:
    """Largest value over the prompts and over all positions up to each of `at`: [K, n, T] → [K, len(at)]."""
    return values.amax(1).cummax(-1).values[:, at]


# --- Finitely many concepts: tables and Markov chains -----------------------------------------------------------------


def measure_prompts(pack: Pack) -> dict[str, pd.DataFrame]:
    """Draw prompts of known concepts and follow the regret of each predictor along every one of them."""
    import torch

    from theory.icl import bayes, tasks

    M, R, T, n, copies = (pack[name] for name in ("m", "responses", "length", "prompts", "copies"))
    numbers, chain = pack.column("seed"), pack["layout"] == "markov"
    if chain:
        tables = tasks.markov_tables(numbers, M // copies, R, C0, pack["alpha"], device=pack.device)
    else:
        tables = tasks.concept_tables(numbers, M // copies, R, R, C0, pack["alpha"], device=pack.device)
    tables = tables.repeat(1, copies, 1, 1)
    prior = prior_law(pack["prior"], M).to(tables)
    if chain:
        z, x = tasks.sample_chains(tables, prior, n, T, numbers)
        c, r = tasks.chain_pairs(x)
    else:
        z, c, r = tasks.sample_pairs(tables, prior, n, T, numbers)

    grid = positions(T)
    at = torch.tensor(grid, device=z.device) - 1
    bound = bayes.regret_bound(prior, z)  # [K, n]
    true, average = bayes.truth(tables, z, c), bayes.bma(tables, prior, c, r)
    path = bayes.log_posterior_at(tables, prior, c, r, z)
    gained = bayes.information(tables, prior, c, r)
    wrong = wrong_prior(pack["prior"], M).to(tables)
    laws = {
        "bma": average,
        "wrong prior": bayes.bma(tables, wrong, c, r),
        "tempered": bayes.bma(tables, prior, c, r, power=0.5),
        "leak": bayes.bma(tables, prior, c, r, leak=True),
        "plug-in": bayes.plug_in(tables, prior, c, r),
        "prior average": bayes.prior_average(tables, prior, c),
        "counts": bayes.context_counts(c, r, R, R),
    }
    found: dict[str, list] = {name: [] for name in ("regret", "sampled", "excess", "identity_error")}
    for predictive in (laws[name] for name in PREDICTORS):
        sampled = bayes.sampled_regret(predictive, true, r)
        found["regret"].append(bayes.averaged_regret(gained, average, predictive).mean(1)[:, at])
        found["sampled"].append(sampled.mean(1)[:, at])
        found["excess"].append(worst(sampled - bound[..., None], at))
        found["identity_error"].append(worst((sampled - (path[..., 1:] - path[..., :1])).abs(), at))
    few = slice(0, CHECKED)
    other = bayes.by_marginals(tables, prior, c[:, few], r[:, few])
    hindsight = bayes.hindsight_regret(average, tables, c, r)

    def gap(predictive: Tensor) -> Tensor:
        return worst((predictive[:, few] - other).abs().amax(-1), at)

    axes: dict[str, list[Any]] = {"predictor": list(PREDICTORS), "t": grid}
    return {
        "prompts": pack.frame(axes, **{name: torch.stack(parts, 1) for name, parts in found.items()}),
        "posteriors": pack.frame(
            {"t": grid},
            information=gained.mean(1)[:, 1:][:, at],
            posterior=path.exp().mean(1)[:, 1:][:, at],
            bound=bound.mean(1)[:, None].expand(-1, len(grid)),
            gap=gap(average),
            gap_wrong_prior=gap(laws["wrong prior"]),
            gap_tempered=gap(laws["tempered"]),
            gap_plug_in=gap(laws["plug-in"]),
            hindsight_excess=worst(hindsight, at) - math.log(M),
        ),
    }


def _wanted(cell: Mapping[str, Any]) -> bool:
    """Independent pairs under a uniform prior, or that with one thing changed."""
    changes = (cell["layout"] != "pair") + (cell["prior"] != "uniform") + (cell["copies"] != 1)
    return changes == 0 or (changes == 1 and cell["alpha"] == 1.0 and cell["m"] == 16)


POSTERIOR = {"t": int, "information": float, "posterior": float, "bound": float, "gap": float}
ERRORS = {"sampled": float, "excess": float, "identity_error": float}

prompts = Trial(
    "prompts",
    (
        Factor("layout", ("pair", "markov")),
        Factor("prior", ("uniform", "ranked")),
        Factor("m", scaled((4, 16), (4, 16, 64), (16, 64, 256, 1024, 4096))),
        Factor("responses", scaled((4,), (4,), (16,))),
        Factor("alpha", scaled((1.0,), (0.3, 1.0), (0.3, 1.0))),
        Factor("copies", (1, 4)),
        Factor("length", scaled((64,), (512,), (4096,))),
        Factor("prompts", scaled((40,), (200,), (200,))),
        seeds(3, 10, 10),
    ),
    (
        Table("prompts", {"predictor": str, "t": int, "regret": float} | ERRORS),
        Table(
            "posteriors",
            POSTERIOR | dict.fromkeys(("gap_wrong_prior", "gap_tempered", "gap_plug_in", "hindsight_excess"), float),
        ),
    ),
    measure_prompts,
    where=_wanted,
    cost=lambda cell: 1e-7 * cell["prompts"] * cell["length"] * (8 + cell["m"] + cell["responses"] ** 2),
    memory=lambda cell: 8.0 * cell["prompts"] * cell["length"] * 12 * cell["responses"] + 2e7,
)


# --- Hidden Markov models ---------------------------------------------------------------------------------------------


def measure_documents(pack: Pack) -> pd.DataFrame:
    """The same for documents of hidden Markov models, whose tokens are not independent given the concept.

    The second computation of the predictive is the forward algorithm on one chain over all pairs of concept and state,
    started in state s of concept z with probability P_Z(z) P(h_1 = s | z).
    """
    import torch

    from theory.icl import bayes, tasks

    M, V, T, n = (pack[name] for name in ("m", "vocabulary", "length", "prompts"))
    numbers = pack.column("seed")
    hmm = tasks.ginc(numbers, M, pack["slots"], pack["slots"], V, device=pack.device)
    prior = prior_law("uniform", M).to(hmm.start)
    z, _, x = tasks.sample_hmm(hmm, prior, n, T, numbers)
    increments, laws = tasks.forward(hmm, x)
    beliefs = bayes.log_posteriors(prior, increments)  # [K, n, T + 1, M]
    path = beliefs.gather(3, z[:, :, None, None].expand(-1, -1, T + 1, 1)).squeeze(3)
    own = z[:, :, None, None, None].expand(-1, -1, T, 1, V)
    true, average = laws.gather(3, own).squeeze(3), bayes.mix(prior, increments, laws)
    skewed = bayes.mix(wrong_prior("uniform", M).to(prior), increments, laws)

    grid = positions(T)
    at = torch.tensor(grid, device=z.device) - 1
    weights, start = beliefs.exp(), prior.log()
    gained = torch.where(weights > 0, weights * (beliefs - start), 0.0).sum(-1)
    sampled, broken = (bayes.sampled_regret(predictive, true, x) for predictive in (average, skewed))
    bound = bayes.regret_bound(prior, z)
    S = hmm.start.shape[2]
    joint = tasks.HMM(
        (hmm.start * prior[:, None]).reshape(-1, 1, M * S),
        torch.stack([torch.block_diag(*member) for member in hmm.transition]).unsqueeze(1),
        hmm.emission.reshape(-1, 1, M * S, V),
    )
    few = slice(0, CHECKED)
    other = tasks.forward(joint, x[:, few])[1].squeeze(3)
    log_ratio = path[..., 1:] - path[..., :1]
    return pack.frame(
        {"t": grid},
        information=gained.mean(1)[:, 1:][:, at],
        posterior=path.exp().mean(1)[:, 1:][:, at],
        bound=bound.mean(1)[:, None].expand(-1, len(grid)),
        gap=worst((average[:, few] - other).abs().amax(-1), at),
        gap_wrong_prior=worst((skewed[:, few] - other).abs().amax(-1), at),
        sampled=sampled.mean(1)[:, at],
        excess=worst(sampled - bound[..., None], at),
        identity_error=worst((sampled - log_ratio).abs(), at),
        excess_wrong_prior=worst(broken - bound[..., None], at),
        identity_error_wrong_prior=worst((broken - log_ratio).abs(), at),
    )


documents = Trial(
    "documents",
    (
        Factor("m", scaled((4,), (5,), (5, 16))),
        Factor("slots", scaled((3,), (4,), (10,))),
        Factor("vocabulary", scaled((8,), (20,), (50, 100, 150))),
        Factor("length", scaled((32,), (256,), (1024,))),
        Factor("prompts", scaled((20,), (100,), (50,))),
        seeds(3, 10, 10),
    ),
    (
        Table(
            "documents",
            POSTERIOR | ERRORS
            | dict.fromkeys(("gap_wrong_prior", "excess_wrong_prior", "identity_error_wrong_prior"), float),
        ),
    ),
    measure_documents,
    cost=lambda cell: (
        2e-9 * cell["prompts"] * cell["length"] * cell["m"] * cell["slots"] ** 2 * (cell["slots"] ** 2 + cell["vocabulary"])
    ),
    memory=lambda cell: 24.0 * cell["prompts"] * cell["length"] * cell["m"] * cell["vocabulary"] + 2e7,
)  # fmt: skip


# --- Every prompt there is --------------------------------------------------------------------------------------------


def measure_enumeration(pack: Pack) -> pd.DataFrame:
    """Go through all prompts of a small task with their probabilities: expected regret without sampling."""
    import torch

    from theory.icl import bayes, tasks

    M, C, R, T, K = pack["m"], 2, pack["responses"], pack["length"], len(pack)
    numbers = pack.column("seed")
    tables = tasks.concept_tables(numbers, M, C, R, C0, device=pack.device)
    prior = prior_law("ranked", M).to(tables)
    words = torch.cartesian_prod(*[torch.arange(C * R, device=tables.device)] * T).expand(K, -1, -1)
    c, r = words // R, words % R
    likelihood = bayes.log_likelihoods(tables, c, r).cumsum(2)  # [K, n, T, M]
    joint = likelihood[:, :, -1].exp() * prior / C**T  # P(z, S_T), [K, n, M]
    weight = joint.sum(-1)
    average = bayes.bma(tables, prior, c, r)
    laws = {
        "bma": average,
        "wrong prior": bayes.bma(tables, wrong_prior("ranked", M).to(prior), c, r),
        "tempered": bayes.bma(tables, prior, c, r, power=0.5),
        "leak": bayes.bma(tables, prior, c, r, leak=True),
        "plug-in": bayes.plug_in(tables, prior, c, r),
        "prior average": bayes.prior_average(tables, prior, c),
        "counts": bayes.context_counts(c, r, C, R),
    }

    def expected(value: Tensor) -> Tensor:
        return (weight[..., None] * value).sum(1)

    best = (joint[:, :, None] * likelihood).sum((1, 3))  # E Σ log P(r_i | c_i, z*), [K, T]
    regret = [best + expected(bayes.log_loss(laws[name], r).cumsum(-1)) for name in PREDICTORS]
    divergence = [expected(bayes.kl(average, laws[name]).cumsum(-1)) for name in PREDICTORS]
    reverse = [expected(bayes.kl(laws[name], average).cumsum(-1)) for name in PREDICTORS]
    gained = expected(bayes.information(tables, prior, c, r)[..., 1:])
    entropy = -(prior * prior.log()).sum()
    axes: dict[str, list[Any]] = {"predictor": list(PREDICTORS), "t": list(range(1, T + 1))}
    shape = (K, len(PREDICTORS), T)
    return pack.frame(
        axes,
        regret=torch.stack(regret, 1),
        divergence=torch.stack(divergence, 1),
        reverse_divergence=torch.stack(reverse, 1),
        information=gained[:, None].expand(shape),
        entropy=entropy.expand(shape),
    )


enumeration = Trial(
    "enumeration",
    (
        Factor("m", scaled((3,), (2, 3, 5), (2, 3, 5))),
        Factor("responses", scaled((2,), (2, 3), (2, 3))),
        Factor("length", scaled((4,), (5,), (7,))),
        seeds(3, 10, 10),
    ),
    (
        Table(
            "enumeration",
            {"predictor": str, "t": int}
            | dict.fromkeys(("regret", "divergence", "reverse_divergence", "information", "entropy"), float),
        ),
    ),
    measure_enumeration,
    cost=lambda cell: 0.01 + 2e-6 * (2 * cell["responses"]) ** cell["length"] * cell["length"],
    memory=lambda cell: (
        8.0 * (2 * cell["responses"]) ** cell["length"] * cell["length"] * (20 + 10 * cell["responses"]) + 2e7
    ),
)


# --- A continuous prior -----------------------------------------------------------------------------------------------

LAMBDA = 1.0
"""Prior variance of each weight."""


def measure_regression(pack: Pack) -> pd.DataFrame:
    """Bayesian linear regression with Gaussian weights and covariates: its regret, sampled and averaged over all but X.

    The misspecified learner believes in four times the noise there is.
    """
    import torch

    from theory.icl import regression, tasks

    T, n, d, sigma2 = (pack[name] for name in ("length", "prompts", "d", "sigma2"))
    X, y, w = tasks.linear_prompts(pack.column("seed"), n, T, d, LAMBDA, sigma2, device=pack.device)
    grid = positions(T)
    at = torch.tensor(grid, device=X.device) - 1
    believed = regression.kalman(X, y, LAMBDA, 4 * sigma2)
    variance = believed.spread + 4 * sigma2
    noise = y - (X @ w.unsqueeze(-1)).squeeze(-1)
    steps = (variance / sigma2).log() + (y - believed.prediction).square() / variance - noise.square() / sigma2
    gained = regression.information_gain(X, LAMBDA, sigma2)
    limit = regression.information_limit(torch.tensor(grid, dtype=torch.float64), d, LAMBDA, sigma2)
    return pack.frame(
        {"t": grid},
        information=gained.mean(1)[:, at],
        sampled=regression.sampled_regret(X, y, w, LAMBDA, sigma2).mean(1)[:, at],
        misspecified=(steps / 2).cumsum(-1).mean(1)[:, at],
        limit=limit.expand(len(pack), -1),
    )


gaussian = Trial(
    "gaussian",
    (
        Factor("d", scaled((2, 4), (1, 2, 4, 8), (1, 2, 4, 8, 20))),
        Factor("sigma2", scaled((0.25,), (0.25, 1.0), (0.25, 1.0))),
        Factor("length", scaled((128,), (1024,), (4096,))),
        Factor("prompts", scaled((50,), (400,), (4000,))),
        seeds(3, 10, 10),
    ),
    (Table("gaussian", {"t": int} | dict.fromkeys(("information", "sampled", "misspecified", "limit"), float)),),
    measure_regression,
    cost=lambda cell: 1.2e-7 * cell["prompts"] * cell["length"] * (3 + cell["d"] ** 2 / 4),
    memory=lambda cell: 8.0 * cell["prompts"] * cell["length"] * (12 + 2 * cell["d"]) + 2e7,
)

TRIALS = (prompts, documents, enumeration, gaussian, *LIMIT_TRIALS)
