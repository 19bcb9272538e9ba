"""The exact half of the in-context-learning study: its trials in one process, its claims judged on planted laws."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from assay import Paper, Study, verdict
from assay.plan import plan
from assay.results import Progress, Tables, judge_claim
from studies.icl.exact import PREDICTORS, TRIALS, positions, prior_law, wrong_prior
from studies.icl.exact_claims import CLAIMS
from studies.icl.exact_figures import FIGURES
from studies.icl.exact_frames import CLEAR, clear, outcome, wrong
from studies.icl.exact_limits import STEPS
from studies.icl.labels import CONCEPTS, LABEL_C0, SHOWN
from theory.icl import attention, depth

study = Study(
    "icl", "in-context learning", "the exact half", (Paper("a", "b", ("c",), 2023),), "1", TRIALS, CLAIMS, FIGURES
)  # fmt: skip
COMPLETE = {trial.name: Progress(1, 1, 0) for trial in study.trials}
SEEDS = range(8)
GRID = positions(512)


def test_positions_are_a_geometric_grid_that_ends_at_the_last_one():
    assert positions(50) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 50]
    assert positions(1) == [1]


def test_priors_are_laws_and_wrong_ones_differ():
    for name in ("uniform", "ranked"):
        law, other = prior_law(name, 5), wrong_prior(name, 5)
        assert float(law.sum()) == pytest.approx(1)
        assert float(other.sum()) == pytest.approx(1)
        assert float((law - other).abs().max()) > 0.05


# Claims


def planted() -> dict[str, pd.DataFrame]:
    """Tables in which every sentence holds, or fails where that is expected, with a little noise per seed."""
    dice = np.random.default_rng(0)

    def noisy(value: float, noise: float = 0.01) -> float:
        return float(value * np.exp(noise * dice.normal()))

    kinds = [("pair", "uniform", m, alpha, 1) for m in (4, 16) for alpha in (0.3, 1.0)]
    kinds += [("markov", "uniform", 16, 1.0, 1), ("pair", "ranked", 16, 1.0, 1), ("pair", "uniform", 16, 1.0, 4)]
    prompts, posteriors, documents = [], [], []
    for layout, prior, m, alpha, copies in kinds:
        for seed in SEEDS:
            bound = math.log(m) if prior == "uniform" else noisy(0.95 * math.log(m))
            key = {"layout": layout, "prior": prior, "m": m, "alpha": alpha, "copies": copies, "seed": seed}
            for t in GRID:
                gained = (bound - math.log(copies)) * (1 - math.exp(-t / 8))
                posteriors.append(
                    key | {"t": t, "information": gained, "posterior": 1 - math.exp(-t / 8), "bound": bound,
                           "gap": 1e-14, "gap_wrong_prior": 0.1, "gap_tempered": 0.1, "gap_plug_in": 0.3,
                           "hindsight_excess": gained - bound}
                )  # fmt: skip
                for name in PREDICTORS:
                    more = {"counts": math.log(t), "prior average": 0.3 * t, "plug-in": 0.4}.get(name, 0.0)
                    exact = name == "bma"
                    prompts.append(
                        key | {"predictor": name, "t": t, "regret": gained + more,
                               "sampled": -gained if name == "leak" else noisy(gained + more, 1e-3),
                               "excess": gained - bound + (1e-12 if exact else 0.3),
                               "identity_error": 1e-12 if exact else 0.3}
                    )  # fmt: skip
    for seed in SEEDS:
        for t in GRID:
            gained = math.log(5) * (1 - math.exp(-t / 8))
            documents.append(
                {"m": 5, "vocabulary": 20, "seed": seed, "t": t, "information": gained, "sampled": gained,
                 "posterior": 1 - math.exp(-t / 8), "bound": math.log(5), "gap": 1e-15, "gap_wrong_prior": 0.1,
                 "excess": -1e-3, "identity_error": 1e-12, "excess_wrong_prior": 0.2, "identity_error_wrong_prior": 0.2}
            )  # fmt: skip
    enumeration = [
        {"m": 3, "responses": 2, "seed": seed, "predictor": name, "t": t, "information": 0.2 * t, "entropy": 1.0,
         "regret": -0.1 * t if name == "leak" else 0.2 * t + (0.0 if name == "bma" else 0.05 * t),
         "divergence": 0.0 if name == "bma" else 0.05 * t, "reverse_divergence": 0.0 if name == "bma" else 0.07 * t}
        for seed in SEEDS for name in PREDICTORS for t in range(1, 5)
    ]  # fmt: skip
    gaussian = []
    for d in (2, 4):
        for seed in SEEDS:
            offset = 0.1 * dice.normal()
            for t in GRID:
                law = d / 2 * math.log(1 + t / 0.25)
                gaussian.append({"d": d, "sigma2": 0.25, "seed": seed, "t": t, "information": law, "limit": law,
                                 "sampled": law + offset, "misspecified": law + 0.2 * t})  # fmt: skip
    attention_rows = [
        {"features": name, "lam": 2.0, "sigma2": 0.1, "length": 32, "seed": seed, "error": 1e-12, "variance_error": 1e-13,
         "error_ridge_lambda": 0.1, "error_ridge_sigma2": 0.05, "error_softmax": 1.0, "scale": 2.0}
        for name in ("linear", "quadratic") for seed in SEEDS
    ]  # fmt: skip
    softmax_limit = []
    for target, d in (("degree one", 2), ("degree one", 3), ("mixed", 2)):
        for gamma in (0.5, 1.0):
            for ridge in attention.RIDGES:
                for T in (256, 512, 1024, 2048, 4096):
                    predicted = attention.predicted_constant(d, gamma, 1, T, attention.RIDGES[ridge](T))
                    mixed = target == "mixed"
                    for seed in SEEDS:
                        softmax_limit.append(
                            {"target": target, "d": d, "gamma": gamma, "ridge": ridge, "length": T, "seed": seed,
                             "residual": noisy(0.4 if mixed else 3 * T**-0.5), "residual_one": noisy(0.7),
                             "constant": noisy(1.4 * predicted if mixed else predicted), "predicted": predicted,
                             "limit": 1 / attention.funk_hecke(d, gamma, 1),
                             "constant_first": noisy(predicted), "constant_last": noisy((3 if mixed else 1) * predicted)}
                        )  # fmt: skip
    families = [
        {"family": family, "t_p": t, "n_p": n, "seed": seed}
        | {column: noisy((n * t) ** -0.5 + (family != "right") * 0.1) for column in ("tv", "tv_shared")}
        for family in ("right", "one too few") for t in (8, 16, 32) for n in (64, 256, 1024, 4096) for seed in SEEDS
        if t == 16 or n == 1024
    ]  # fmt: skip
    stacks, laws = [], []
    for d in (4, 8):
        for n in (16, 32):
            for sigma2 in (0.1, 0.25, 1.0):
                key = {"d": d, "examples": n, "sigma2": sigma2}
                p = noisy(0.6, 0.05)
                for steps, rate, power in (("optimal", 3.0, p), ("untrained", 0.1, 1.0)):
                    excess = [math.exp(-rate * D**power) for D in range(1, 9)]
                    found = depth.decay_law(range(1, 9), excess)
                    aicc = {f"aicc_{name}": found[name].aicc for name in depth.LAWS}
                    laws.append(key | {"steps": steps, "power": found["exponential"].power} | aicc)
                    stacks += [key | {"steps": steps, "layers": D, "excess": excess[D - 1]} for D in range(1, 9)]
    unit = math.log(1 / LABEL_C0)
    labels = []
    for inputs, tokens, drift in (("informative", 4, 3.0), ("informative", 1, 1.0), ("uninformative", 1, -0.7)):
        for mode in SHOWN:
            own = abs(drift) if mode == "correct" else drift
            for seed in range(40):  # as many as a share of one needs to be surely above 0.9
                for concept in range(CONCEPTS):
                    for t in (1, 8, 64, 1024):
                        kl = 0.3 * math.exp(-own * (t - 1) / 8) if own > 0 else 0.3 * (2 - 1 / t)
                        labels.append(
                            {"inputs": inputs, "tokens": tokens, "labels": mode, "seed": seed, "concept": concept, "t": t,
                             "kl": kl, "tv": kl / 10, "kl_responses": 0.5, "tv_responses": 0.2, "tv_forgetful": 0.02,
                             "free": 0.02, "posterior": float(own > 0), "drift": own,
                             "response_drift": 0.9 if mode == "correct" else -0.8,
                             "divergence": (5.0 if tokens == 4 else 1.5 if drift > 0 else 0.5) * unit}
                        )  # fmt: skip
    long_labels = [row | {"t": 4 * row["t"]} for row in labels if row["tokens"] == 4]
    found = {"prompts": prompts, "posteriors": posteriors, "documents": documents, "enumeration": enumeration,
             "gaussian": gaussian, "attention": attention_rows, "softmax_limit": softmax_limit, "families": families,
             "stacks": stacks, "stack_laws": laws, "labels": labels, "long_labels": long_labels}  # fmt: skip
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


@pytest.fixture(scope="module")
def tables():
    frames = planted()
    return Tables(study, lambda name: frames[name])


@pytest.mark.parametrize("claim", study.claims, ids=lambda claim: claim.id)
def test_claims_hold_where_the_theory_does_and_their_controls_fail(claim, tables):
    found = judge_claim(claim, tables, COMPLETE)
    assert found.outcome == (claim.expect or "supported"), found.reason
    assert [control.assessment.outcome for control in found.controls] == ["refuted"] * len(claim.controls)


def one_row(column: str, value: float, **where: object):
    """Change a column in the first row of each part of a table that fits."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        fits = np.ones(len(frame), dtype=bool)
        for name, wanted in where.items():
            fits &= (frame[name] == wanted).to_numpy()
        rows = frame.index[fits][:1]
        assert len(rows) == 1
        out = frame.copy()
        out.loc[rows, column] = value
        return out

    return change


VIOLATIONS = {
    "ICL-1a": ("posteriors", one_row("gap", 1e-9)),
    "ICL-2": ("prompts", one_row("excess", 1e-8, predictor="bma", m=4)),
    "ICL-2-identity": ("prompts", one_row("identity_error", 1e-8, predictor="bma", m=4)),
    "ICL-2-plateau": ("prompts", lambda frame: frame.assign(sampled=0.95 * frame["sampled"])),
    "ICL-2-slope": ("prompts", lambda frame: frame.assign(regret=frame["regret"] * frame["t"] ** 0.1)),
    "ICL-7-exact": ("enumeration", one_row("regret", 5.0, predictor="plug-in")),
    "ICL-2-optimal": ("enumeration", one_row("regret", -0.1, predictor="counts")),
    "ICL-2c": ("gaussian", lambda frame: frame.assign(sampled=1.1 * frame["sampled"])),
    "ICL-3": ("attention", one_row("error", 1e-8)),
    "ICL-4": ("softmax_limit", lambda frame: frame.assign(residual=frame["residual"] * frame["length"] ** 0.4)),
    "ICL-4-circle": ("softmax_limit", lambda frame: frame.assign(residual=frame["residual"] * frame["length"] ** 0.4)),
    "ICL-4-constant": ("softmax_limit", lambda frame: frame.assign(constant=1.1 * frame["constant"])),
    "ICL-4-shrunk": ("softmax_limit", lambda frame: frame.assign(constant=1.1 * frame["constant"])),
    "ICL-5-Np": ("families", lambda frame: frame.assign(tv=frame["tv"] ** 0.5)),
    "ICL-5-Tp": ("families", lambda frame: frame.assign(tv=frame["tv"] ** 0.5)),
    "ICL-5-Tp-fixed": ("families", lambda frame: frame.assign(tv_shared=frame["tv_shared"] ** 0.5)),
    "ICL-6": ("stack_laws", one_row("power", 0.2, steps="optimal")),
    "ICL-6-rate": ("stacks", one_row("excess", 1.0, steps="optimal", layers=8)),
    "ICL-8": ("long_labels", one_row("tv", 0.1, t=4096, labels="rival")),
    "ICL-8-drift": ("labels", lambda frame: frame.assign(posterior=1 - frame["posterior"])),
    "ICL-8-robust": ("labels", lambda frame: frame.assign(kl=frame["kl"].mask(frame["labels"] == "rival", 0.3))),
    "ICL-8-misled": ("labels", lambda frame: frame.assign(kl=0.3 / frame["t"])),
}


@pytest.mark.parametrize("claim", VIOLATIONS)
def test_what_a_claim_forbids_refutes_it(claim, tables):
    """Judged without its controls, some of which would then hold."""
    name, change = VIOLATIONS[claim]
    declared = study.claim(claim)
    bent = Tables(study, lambda asked: change(tables[asked]) if asked == name else tables[asked])
    found = verdict.assess(declared.kind, declared.data(bent), declared.unit, declared.cases)
    assert found.outcome == "refuted"


@pytest.mark.parametrize(
    ("claim", "table", "change"),
    [
        ("ICL-2c-rate", "gaussian", lambda frame: frame.assign(information=frame["d"] * 2.0)),
        ("ICL-4-universal", "softmax_limit", lambda frame: frame.assign(residual=frame["length"] ** -0.5)),
        ("ICL-6-literal", "stack_laws", lambda frame: frame.assign(power=1.0, aicc_exponential=-1e3)),
    ],
)
def test_sentences_expected_to_fail_would_be_supported_if_they_held(claim, table, change, tables):
    declared = study.claim(claim)
    assert declared.expect == "refuted"
    bent = Tables(study, lambda asked: change(tables[asked]) if asked == table else tables[asked])
    found = verdict.assess(declared.kind, declared.data(bent), declared.unit, declared.cases)
    assert found.outcome == "supported"


def test_a_continuous_prior_is_not_compared_with_concepts_whose_regret_does_not_fall(tables):
    bent = tables["prompts"].assign(regret=tables["prompts"]["t"])
    found = judge_claim(
        study.claim("ICL-2c-rate"), Tables(study, lambda name: bent if name == "prompts" else tables[name]), COMPLETE
    )
    assert found.outcome == "void"


def test_without_both_signs_of_the_drift_there_is_no_verdict_on_it(tables):
    frame = tables["labels"]
    frame["drift"] = frame["drift"].abs()
    found = judge_claim(
        study.claim("ICL-8-drift"), Tables(study, lambda name: frame if name == "labels" else tables[name]), COMPLETE
    )
    assert found.outcome == "void"


def test_drifts_that_add_up_to_little_predict_nothing():
    frame = pd.DataFrame({"drift": [0.1, -0.2, 1.0, -1.0], "t": 100})
    assert clear(frame)["drift"].tolist() == [-0.2, 1.0, -1.0]
    assert clear(frame)["sign"].tolist() == ["negative", "positive", "negative"]
    assert CLEAR == 20


def test_linear_and_mixed_targets_are_compared_on_the_same_circle(tables):
    """Where a constant leaves as much of linear targets as of mixed ones, mixed degrees are not to blame."""
    bent = tables["softmax_limit"].assign(residual=0.4)
    found = judge_claim(
        study.claim("ICL-4-universal"),
        Tables(study, lambda name: bent if name == "softmax_limit" else tables[name]),
        COMPLETE,
    )
    assert [gate.assessment.outcome for gate in found.gates] == ["refuted", "refuted"]
    assert found.outcome == "void"


def test_a_bound_that_a_predictor_without_context_keeps_is_void(tables):
    bent = tables["long_labels"].assign(tv_forgetful=0.0)
    found = judge_claim(
        study.claim("ICL-8"), Tables(study, lambda name: bent if name == "long_labels" else tables[name]), COMPLETE
    )
    assert found.outcome == "void"
    assert "trivial control" in found.reason


# Trials


def test_nothing_diverges(measured):
    for table in study.tables:
        assert set(measured[table.name]["status"]) == {"ok"}, table.name


@pytest.mark.parametrize("figure", study.figures, ids=lambda figure: figure.name)
def test_every_figure_draws_what_was_measured(figure, measured):
    assert figure.draw(measured).to_dict()["title"]
    assert figure.claims


@pytest.mark.parametrize("claim", study.claims, ids=lambda claim: claim.id)
def test_every_claim_and_control_can_be_judged_on_what_was_measured(claim, measured):
    found = judge_claim(claim, measured, COMPLETE)
    judged = [found.assessment, *(control.assessment for control in found.controls)]
    assert all(one.cases for one in judged), found.reason


@pytest.mark.parametrize(
    "claim", ["ICL-1a", "ICL-2", "ICL-2-identity", "ICL-7-exact", "ICL-2-optimal", "ICL-3", "ICL-6", "ICL-8"]
)
def test_what_holds_on_every_row_holds_at_smoke_scale(claim, measured):
    found = judge_claim(study.claim(claim), measured, COMPLETE).assessment
    assert found.outcome == "supported", found.reason


@pytest.mark.parametrize("trial", study.trials, ids=lambda trial: trial.name)
def test_a_cell_gives_the_same_rows_alone_and_in_its_pack(trial, measured):
    pack = next(pack for pack in plan(study, "smoke") if pack.trial == trial.name and len(pack) > 1)
    alone = pack.split()[len(pack) // 2]
    for name, frame in study.run_pack(alone).items():
        there = measured[name]
        there = there[there["cell"] == alone.cells[0].id].reset_index(drop=True)
        pd.testing.assert_frame_equal(frame, there, rtol=1e-10, atol=1e-11)


def test_averaging_does_better_than_its_rivals_and_the_leak_better_than_possible(measured):
    frame = measured["enumeration"]
    last = frame[frame["t"] == frame["t"].max()].pivot(index="seed", columns="predictor", values="regret")
    for name in PREDICTORS:
        if name not in ("bma", "leak"):
            assert (last[name] > last["bma"]).all(), name
    assert (last["leak"] < last["bma"]).all()
    assert (frame["information"] <= frame["entropy"]).all()


def test_copies_of_a_concept_lower_the_plateau_to_that_of_distinct_ones(measured):
    frame = measured.part("posteriors", copies=4)
    assert (frame["information"] <= frame["bound"] - math.log(4) + 1e-9).all()
    assert (frame["posterior"] <= 0.25 + 1e-12).all()


def test_a_stack_that_was_never_fitted_is_never_better(measured):
    keys = ["d", "examples", "sigma2", "layers"]
    frame = measured["stacks"].pivot(index=keys, columns="steps", values="excess")
    assert set(frame) == set(STEPS)
    assert (frame["optimal"] <= frame["untrained"] + 1e-12).all()


def test_wrong_labels_show_both_signs_of_the_drift(measured):
    for sign in ("positive", "negative"):
        assert len(outcome(sign)(measured)), sign
    assert set(wrong(measured)["labels"]) == {"random", "least likely", "rival"}


@pytest.mark.parametrize("scale", ["smoke", "laptop", "cluster"])
def test_every_scale_can_be_planned(scale):
    packs = plan(study, scale)
    assert packs
    assert sum(pack.expected_s for pack in packs) < {"smoke": 25, "laptop": 720, "cluster": 1e6}[scale]
