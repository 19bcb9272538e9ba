"""Claims that need no training: how each is judged, and the controls that must fail."""

from __future__ import annotations

from assay import Bound, Claim, Control, Equality, Gate, Ordering, Proportion, Slope
from studies.icl.exact_frames import (
    CASES,
    CLEAR,
    CONCENTRATED,
    CONFIGURATION,
    attention,
    beyond_bma,
    bounded_error,
    called_robust,
    constant,
    constant_of_other_bandwidth,
    correct,
    counts_as_best,
    decay_power,
    drift_right,
    ends,
    enumerated,
    error_against,
    excess,
    excess_in_bits,
    identity,
    negative,
    on_plateau,
    outcome,
    per_half_d,
    plateau,
    residual,
    same_law,
    shuffled_power,
    tighter_excess,
)  # fmt: skip

EXACT = 1e-9
"""Rounding that an identity in double precision may show."""
INVERSE = Slope(-1.0, band=0.05)
HALF_D = Slope(1.0, band=0.05, log=False)
ROOT = Slope(-0.5, band=0.10)
TENFOLD = Ordering("less", margin=2.302585092994046, log=True)
VANISHES = Slope(-0.25, band=(float("inf"), 0.0))
"""Falls at least as fast as T^{-1/4}."""
SPHERE = ("d", "gamma", "ridge")

FINITE = (
    Claim(
        "ICL-1a",
        "A perfectly pretrained model averages over concepts by their posterior: the posterior mixture is the ratio of "
        "marginals P(S_t, c, r)/P(S_t, c)",
        "Zhang et al. 2023, Prop. 4.1, eq. (4.2)",
        Equality(1e-10, prediction=0.0, every_row=True),
        same_law(),
        (
            Control("another prior", same_law("gap_wrong_prior")),
            Control("half the log-likelihood", same_law("gap_tempered")),
            Control("the likeliest concept alone", same_law("gap_plug_in")),
        ),
        cases=CASES,
        note="Largest difference of a probability. Tables and chains: marginals from counts of pairs. Documents of hidden "
        "Markov models: the forward algorithm on the chain over all pairs of concept and state.",
    ),
    Claim(
        "ICL-2",
        "On every path and at every t, regret_t(z*) ≤ log(1/P_Z(z*))/t; under a uniform prior regret_t ≤ log|Z|/t also "
        "against the concept that is best in hindsight",
        "Zhang et al. 2023, Cor. 4.2",
        Bound(upper=EXACT, every_row=True),
        excess(),
        (
            Control("bound of a quarter of the concepts", tighter_excess, why="log(|Z|/4)"),
            Control("regret in bits, bound in nats", excess_in_bits),
            Control("averaging with another prior", excess("wrong prior")),
            Control("half the log-likelihood", excess("tempered")),
        ),
        cases=(*CASES, "against"),
        note="Largest t·regret_t − log(1/P_Z(z*)) of all prompts and positions. Covariates do not depend on the concept given "
        "the context; where they do, only the regret of covariates and responses together keeps the bound on every path.",
    ),
    Claim(
        "ICL-2-identity",
        "t·regret_t(z*) = log P(z*|S_t) − log P_Z(z*) on every path",
        "Zhang et al. 2023, proof of Cor. 4.2",
        Equality(EXACT, prediction=0.0, every_row=True),
        identity(),
        (
            Control("averaging with another prior", identity("wrong prior")),
            Control("half the log-likelihood", identity("tempered")),
            Control("posterior sees the response", identity("leak")),
        ),
        cases=CASES,
    ),
    Claim(
        "ICL-2-plateau",
        "t·regret_t(z*) rises to log(1/P_Z(z*)) and stays there",
        "Zhang et al. 2023, Cor. 4.2: the bound is attained; tolerance of 2 % ours",
        Equality(0.02, relative=True),
        plateau(),
        (
            Control(
                "every concept counted four times", plateau(copies=4), why="the plateau is that of distinct tables"
            ),
            Control("plateau of a quarter of the concepts", plateau(quarter=True)),
            Control("posterior sees the response", plateau("leak"), why="its regret is negative"),
        ),
        cases=CASES,
        note="Mean over prompts at the last position.",
    ),
    Claim(
        "ICL-2-slope",
        "regret_t falls as 1/t",
        "Zhang et al. 2023, Cor. 4.2",
        INVERSE,
        on_plateau(),
        (
            Control("said to fall as t^{-1/2}", kind=Slope(-0.5, band=0.05)),
            Control("said to fall as t^{-2}", kind=Slope(-2.0, band=0.05)),
            Control("counting in the prompt", on_plateau("counts"), why="its regret grows as log t"),
            Control("the prior alone", on_plateau("prior average"), why="its regret_t does not fall"),
        ),
        cases=CASES,
        note=f"Positions at which the posterior of the true concept is above {CONCENTRATED} on average over prompts; before, the fall "
        "is slower. Expected regret is the mean of KL(P(z|S_t) ‖ P_Z), which is regret averaged over z* given the "
        "context and varies less.",
    ),
    Claim(
        "ICL-7-exact",
        "The expected regret of any predictor is that of averaging, I(z; S_t), plus its summed divergence from averaging, "
        "Σ_{i≤t} E KL(BMA_i ‖ P̂_i)",
        "Zhang et al. 2023, Thm. 6.2, of which this is the exact form",
        Equality(1e-10, every_row=True),
        enumerated(),
        (
            Control("posterior sees the response", enumerated(leak=True)),
            Control("without the divergence", enumerated(None)),
            Control("divergence taken the other way round", enumerated("reverse_divergence")),
        ),
        cases=("m", "responses", "predictor"),
        note="Expectations over all prompts there are, by enumeration: nothing is sampled.",
    ),
    Claim(
        "ICL-2-optimal",
        "No predictor has less expected regret than averaging",
        "Zhang et al. 2023, Sec. 4.1",
        Bound(lower=-1e-10, every_row=True),
        beyond_bma(),
        (
            Control("posterior sees the response", beyond_bma(leak=True), why="a predictor that knows the answer"),
            Control("counting in the prompt said to be best", counts_as_best),
        ),
        cases=("m", "responses"),
    ),
    Claim(
        "ICL-2c",
        "For a Gaussian prior over d weights, t·regret_t grows as (d/2) log t",
        "consequence of Zhang et al. 2023, eq. (4.4); App. D discretises and loses the logarithm",
        HALF_D,
        per_half_d("information", "sampled"),
        (
            Control("d log t", kind=Slope(2.0, band=0.05, log=False)),
            Control("no logarithm", kind=Slope(0.0, band=0.05, log=False)),
            Control("noise believed to be four times as large", per_half_d("misspecified")),
        ),
        cases=("d", "sigma2", "estimator"),
        note="Slope of t·regret_t/(d/2) against log t from t = 64 on: its interval within 1 ± 0.05 contains 1 up to that margin "
        "and is narrower than 0.1. Two estimators: regret as sampled, and ½ log det(I + λXᵀX/σ²), its mean given the "
        "covariates. At finite t theory has a correction of about −d(d + 1)/(4t).",
    ),
    Claim(
        "ICL-2c-rate",
        "Also for a continuous prior regret_t is O(1/t): t·regret_t does not grow",
        "Zhang et al. 2023, App. D, discussion of regression",
        Slope(0.0, band=(float("inf"), 0.25), log=False),
        per_half_d("information"),
        (
            Control("t·regret_t said to fall", kind=Slope(-0.25, band=(float("inf"), 0.0), log=False)),
            Control("noise believed to be four times as large", per_half_d("misspecified")),
        ),
        cases=("d", "sigma2"),
        gates=(Gate("with finitely many concepts regret_t does fall as 1/t", on_plateau(), INVERSE, cases=CASES),),
        expect="refuted",
        note="Slope of t·regret_t/(d/2) against log t; anything above a quarter counts as growth. The constant log|Z| of finitely "
        "many concepts is infinite here.",
    ),
)

ATTENTION = (
    Claim(
        "ICL-3",
        "attn†(q, K, V) = Vᵀ(𝔎(K, K) + ρI)⁻¹𝔎(K, q) with ρ = σ²/λ is the mean of the predictive in the Gaussian linear model",
        "Zhang et al. 2023, eqs. (4.4)–(4.8)",
        Equality(EXACT, prediction=0.0, every_row=True),
        attention("error", "variance_error"),
        (
            Control("ridge λ", attention("error_ridge_lambda"), why="the paper writes λ for both"),
            Control("ridge σ²", attention("error_ridge_sigma2")),
            Control("softmax attention in its place", attention("error_softmax")),
        ),
        cases=("features", "lam", "sigma2", "length"),
        note="Largest difference over all queries and coordinates; the variance of the predictive counts too.",
    ),
    Claim(
        "ICL-4",
        "Over many keys on the sphere attn† and softmax attention agree up to a constant, where E[v|k] is linear in k",
        "Zhang et al. 2023, Prop. 4.3, conditional on the degree of E[v|k]",
        VANISHES,
        residual(),
        (
            Control("constant 1", residual(column="residual_one")),
            Control("E[v|k] of mixed degree", residual("mixed")),
        ),
        cases=SPHERE,
        note="What the best constant leaves, ‖attn† − Ĉ attn‖/‖attn†‖, falls at least as T^{-1/4}. A fixed ridge and the paper's "
        "T^{3/4} are cases of their own.",
    ),
    Claim(
        "ICL-4-constant",
        "and the constant is 1/A_d(1/γ), the Funk–Hecke ratio of degree one",
        "Zhang et al. 2023, Prop. 4.3, where it is called absolute; the value is derived here",
        Equality(0.05, relative=True),
        constant(),
        (
            Control("constant 1", kind=Equality(0.05, prediction=1.0, relative=True)),
            Control("independent of γ", constant_of_other_bandwidth),
            Control("E[v|k] of mixed degree", constant("mixed")),
        ),
        cases=SPHERE,
        note="The prediction includes the shrinkage Tμ₁/(Tμ₁ + ρ) by the ridge at finite T; with ρ = T^{3/4} the limit itself "
        "is approached as T^{-1/4} only.",
    ),
    Claim(
        "ICL-4-universal",
        "They agree up to a constant whatever E[v|k] is",
        "Zhang et al. 2023, Prop. 4.3 as printed",
        VANISHES,
        residual("mixed"),
        (
            Control("constant 1", residual("mixed", "residual_one")),
            Control(
                "one constant for both degrees",
                constant("mixed", "constant_first", "constant_last"),
                Equality(0.05, relative=True),
            ),
        ),
        cases=SPHERE,
        gates=(Gate("where E[v|k] is linear they do", residual(), VANISHES, cases=SPHERE),),
        expect="refuted",
        note="E[v|k] = 0.45 (cos θ, cos 2θ): degrees one and two have different constants.",
    ),
)

PRETRAINING = tuple(
    Claim(
        f"ICL-5-{symbol.replace('_', '')}",
        f"In a realizable family, the total variation of the maximum-likelihood fit falls as {symbol}^{{-1/2}}",
        "Zhang et al. 2023, Thm. 5.3, second term in the realizable case",
        ROOT,
        error_against(axis),
        (
            Control(f"said to fall as {symbol}^{{-1/4}}", kind=Slope(-0.25, band=0.10)),
            Control(f"said to fall as {symbol}^{{-1}}", kind=Slope(-1.0, band=0.10)),
            Control("one component too few", error_against(axis, "one too few"), why="an error of approximation stays"),
        ),
        note=note,
    )
    for axis, symbol, note in (
        ("n_p", "N_p", "Mixtures of three tables fitted by EM from the truth; means over prefixes of 0..15 tokens; T_p = 16."),
        (
            "t_p",
            "T_p",
            "N_p = 1024; means over prefixes of 0..T_p − 1 tokens, as the theorem has them. More tokens of the same sequences "
            "cannot show concepts that were not drawn.",
        ),
    )
)  # fmt: skip

DEPTH = (
    Claim(
        "ICL-6",
        "With D layers the error of approximation falls at least as fast as exp(−c D^{1/4})",
        "Zhang et al. 2023, Prop. 5.4 and F.4: the rate of the construction",
        Bound(lower=0.25, every_row=True),
        decay_power,
        (
            Control("depths dealt out at random", shuffled_power),
            Control("at least as fast as exp(−c D²)", kind=Bound(lower=2.0, every_row=True)),
        ),
        unit=CONFIGURATION,
        note="p of the law exp(−c D^p) fitted to the exact excess risk of the best stack of linear-attention layers, 0 where AICc "
        "prefers a power law or a constant. A unit is one dimension, prompt length and noise; all count.",
    ),
    Claim(
        "ICL-6-rate",
        "and the deepest stack has less than a tenth of the excess risk of a single layer",
        "Zhang et al. 2023, Prop. 5.4; the factor is ours",
        TENFOLD,
        ends(),
        (
            Control("step sizes never fitted", ends("untrained"), why="η = 0.05 in every layer decays, but too slowly"),
            Control("depths in reverse", ends(reverse=True)),
        ),
        unit=CONFIGURATION,
    ),
    Claim(
        "ICL-6-literal",
        "The error falls exponentially with depth, as exp(−cD)",
        "Zhang et al. 2023, abstract and Sec. 5 in words",
        Bound(lower=0.9),
        decay_power,
        (
            Control("depths dealt out at random", shuffled_power),
            Control("at least as fast as exp(−c D²)", kind=Bound(lower=2.0)),
        ),
        unit=CONFIGURATION,
        expect="refuted",
        note="Mean p of exp(−c D^p) over configurations; 0.9 leaves room for the fit. The covariance of Gaussian prompts has no "
        "largest eigenvalue, so that even the best stack decays more slowly than exponentially.",
    ),
)

MOSTLY = Proportion(at_least=0.9)
SIGN_NOTE = f"Concepts whose drift adds up to at least {CLEAR:g} nats over the prompt; wrong responses only."

RESPONSES = (
    Claim(
        "ICL-8",
        "Where min_z KL_pair(z*‖z) > 2 log(1/c₀), averaging finds the concept whatever responses are shown: its error is at "
        "most (|Z| − 1) exp(−a√t/2b)",
        "Zhang et al. 2023, Prop. 6.3 and G.4; the constant in front is ours",
        Bound(upper=0.0, every_row=True),
        bounded_error(),
        (
            Control("inputs that say nothing", bounded_error(condition=False), why="the bound without its condition"),
            Control("exp(−b t) in place of exp(−a√t/2b)", bounded_error(fast=True)),
            Control("average without context", bounded_error(column="tv_blind"), why="learns from nothing"),
        ),
        cases=("labels",),
        note="Total variation between P(·|c, z*) and the predictive, means over the prompts of a concept. Covariates of l tokens "
        "keep KL_pair below (l + 1) log(1/c₀): the condition cannot hold for l ≤ 1, and is not needed (see the drift).",
    ),
    Claim(
        "ICL-8-drift",
        "The sign of the drift of the log-posterior tells whether wrong responses mislead: positive, and the concept is found",
        "exact form of Zhang et al. 2023, Prop. 6.3, derived here",
        MOSTLY,
        drift_right(),
        (
            Control("sign reversed", drift_right(reverse=True)),
            Control("drift of the responses alone", drift_right("response_drift"), why="inputs left out"),
            Control("uninformative inputs called robust", called_robust),
        ),
        cases=("sign",),
        gates=(
            Gate("negative drifts occur", negative, Proportion(at_least=0.1)),
            Gate("positive drifts occur", negative, Proportion(at_most=0.9)),
        ),
        note=SIGN_NOTE
        + " Found: the mean posterior of z* ends above 1/2. Responses are random or the least likely ones.",
    ),
    Claim(
        "ICL-8-robust",
        "With a positive drift KL(P(·|c, z*) ‖ BMA) falls, to less than a tenth over the prompt",
        "Zhang et al. 2023, Prop. 6.3; the factor is ours",
        TENFOLD,
        outcome("positive"),
        (
            Control("negative drift", outcome("negative")),
            Control("said to grow", kind=Ordering("greater", log=True)),
        ),
        note=SIGN_NOTE,
    ),
    Claim(
        "ICL-8-misled",
        "With a negative drift it grows beyond what no context at all would give",
        "converse of Zhang et al. 2023, Prop. 6.3, derived here",
        Ordering("greater", log=True),
        outcome("negative"),
        (
            Control("positive drift", outcome("positive")),
            Control("correct responses", correct),
        ),
        note=SIGN_NOTE,
    ),
)

CLAIMS = (*FINITE, *ATTENTION, *PRETRAINING, *DEPTH, *RESPONSES)
