"""The trained networks of the in-context learning study: their trials in one process, and their claims on planted laws."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from assay import Paper, Study, verdict
from assay.plan import plan
from assay.results import Progress, Tables, judge_claim
from studies.icl.diversity import ENDLESS, SETTINGS, architecture
from studies.icl.nets import PREDICTORS, REGRET_COLUMNS, RIVALS, SOURCES, TRIALS, judged_against_bayes
from studies.icl.nets_claims import CLAIMS, curves, rates
from studies.icl.nets_figures import FIGURES, crossings
from studies.icl.networks import (
    TEST,
    TESTS,
    TRAINING,
    Fresh,
    concepts,
    distinct,
    divergence,
    gaps,
    prompts,
    stream_of,
)  # fmt: skip
from theory.icl import bayes
from theory.icl.gpt import gaussian_gpt
from theory.icl.layouts import Architecture

study = Study("icl", "Networks", "Networks alone.", (Paper("key", "T", ("A",), 2023),), "1", TRIALS, CLAIMS, FIGURES)
COMPLETE = {trial.name: Progress(1, 1, 0) for trial in study.trials}
SEEDS = range(5)


# What the trials share


def test_parts_of_the_data_are_different_prompts_and_a_cell_sees_what_its_seed_says():
    tables = concepts("pair", 4, [3, 5], "cpu")
    drawn = {part: prompts("pair", tables, 200, 6, [3, 5], part)[2] for part in (TEST, 1, 2, TRAINING, TRAINING + 1)}
    for part, r in drawn.items():
        for other, s in drawn.items():
            assert torch.equal(r, s) == (part == other)
    (alone,) = prompts("pair", tables[1:], 200, 6, [5], TEST)[2]
    assert torch.equal(drawn[TEST][1], alone)
    assert len({stream_of(seed, part) for seed in range(999) for part in range(50)}) == 999 * 50


def test_concepts_of_other_prompts_are_others():
    for layout in ("pair", "markov", "token"):
        own = concepts(layout, 4, [0, 1], "cpu")
        other = concepts(layout, 4, [0, 1], "cpu", foreign=True)
        assert own.shape == other.shape
        assert float((own - other).abs().amax((2, 3)).min()) > 0.05


def test_fresh_prompts_are_the_same_for_one_seed_and_never_come_back():
    own, index = distinct([7, 2, 7])
    assert (own, index.tolist()) == ([2, 7], [1, 0, 1])
    tables = concepts("markov", 4, own, "cpu")
    fresh = Fresh(lambda part, n: prompts("markov", tables, n, 8, own, part)[1:], 5, index)
    seen = [fresh(step) for step in range(130)]
    for c, r in seen:
        assert c.shape == r.shape == (3, 5, 8)
        assert torch.equal(c[0], c[2])
        assert torch.equal(c[..., 1:], r[..., :-1])
    assert len({r[0].numpy().tobytes() for _, r in seen}) == 130
    assert not torch.equal(seen[0][1][0], seen[0][1][1])
    late = Fresh(lambda part, n: prompts("markov", tables, n, 8, own, part)[1:], 5, index)(129)
    assert torch.equal(late[0], seen[129][0])


def test_divergence_is_exact_where_probabilities_underflow():
    p = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64)
    log_q = torch.tensor([-2000.0, 0.0, -3.0], dtype=torch.float64)
    assert float(divergence(p, log_q)) == pytest.approx(0.25 * (math.log(0.25) + 2000) + 0.75 * math.log(0.75))


def test_regret_of_every_predictor_is_what_its_definition_says():
    """An independent computation by loops over prompts and positions, for two networks of one seed."""
    tables = concepts("pair", 4, [0], "cpu")
    other = concepts("pair", 4, [0], "cpu", foreign=True)
    z, c, r = prompts("pair", other, 20, 5, [0], TEST)
    model = gaussian_gpt(Architecture("pair", 5, 3, 3, 8, 1, 2), [0, 1], dtype=torch.float64)
    found = judged_against_bayes(model, tables, other, (z, c, r))
    assert found.shape == (len(REGRET_COLUMNS), 2, len(PREDICTORS), 5)
    net = model.predict(c[0], r[0]).exp().numpy()
    P, Q = tables[0].numpy(), other[0].numpy()
    sampled, expected, kl, tv = np.zeros((4, 2, 5))
    for i in range(20):
        w = np.full(4, 0.25)
        for t in range(5):
            a, b = int(c[0, i, t]), int(r[0, i, t])
            truth, average = Q[z[0, i], a], w @ P[:, a] / w.sum()
            for k in range(2):
                q = net[k, i, t]
                sampled[k, t:] += np.log(truth[b] / q[b]) / 20
                expected[k, t:] += (truth * np.log(truth / q)).sum() / 20
                kl[k, t] += (average * np.log(average / q)).sum() / 20
                tv[k, t] += np.abs(average - q).sum() / 40
            w = w * P[:, a, b]
    for row, there in zip((sampled, expected, kl, tv), found[:4], strict=True):
        np.testing.assert_allclose(there[:, PREDICTORS.index("net")], row, rtol=1e-10)
    np.testing.assert_allclose(found[4, :, PREDICTORS.index("bma")], kl, rtol=1e-10)
    assert float(found[2:4, :, PREDICTORS.index("bma")].abs().max()) < 1e-14
    means = gaps(model, torch.tensor([0, 0]), tables, c, r)
    np.testing.assert_allclose(means[0], kl.mean(1), rtol=1e-10)
    np.testing.assert_allclose(means[1], tv.mean(1), rtol=1e-10)


@pytest.mark.parametrize(("layout", "d", "tokens"), [("regression", 3, 12), ("garg", 8, 31), ("garg", 20, 81)])
def test_networks_of_the_regression_settings_can_be_built(layout, d, tokens):
    shape = architecture(layout, d)
    assert shape.positions == tokens
    assert shape.T == SETTINGS[layout, d].T


def test_every_scale_can_be_planned_and_costs_something():
    for scale in ("smoke", "laptop", "cluster"):
        packs = plan(study, scale)
        assert {pack.trial for pack in packs} == {trial.name for trial in TRIALS}
        assert all(pack.expected_s > 0 and pack.expected_bytes > 0 for pack in packs)
        for trial in TRIALS:
            assert scale != "cluster" or trial.gpus[scale] > 0


# Claims


def planted() -> dict[str, pd.DataFrame]:
    """Tables in which every sentence holds, with a little noise per seed."""
    dice = np.random.default_rng(0)

    def noisy(value: float, noise: float = 0.02) -> float:
        return float(value * np.exp(noise * dice.normal()))

    nets, fits = [], []
    slowness = {(1500, 1e-2): 0.001, (1500, 2e-2): 0.0015, (1500, 1e-3): 0.0085, (150, 1e-3): 0.06, (150, 1e-2): 0.02,
                (150, 2e-2): 0.02, (15, 1e-3): 0.4, (15, 1e-2): 0.35, (15, 2e-2): 0.35}  # fmt: skip
    for M, T in ((4, 48), (8, 24)):
        t = np.arange(1, T + 1)
        for (steps, lr), base in slowness.items():
            for seed in SEEDS:
                cell = {
                    "layout": "pair",
                    "concepts": M,
                    "length": T,
                    "layers": 2,
                    "steps": steps,
                    "lr": lr,
                    "seed": seed,
                }
                fits.append(cell | {"first_loss": 1.3, "validation": 0.7 + base})
                for source in SOURCES:
                    own = source == SOURCES[0]
                    bayes_regret = noisy(0.995, 0.002) * math.log(M) * (1 - np.exp(-t / (4 if M == 4 else 10)))
                    kl = np.full(T, noisy(base))
                    far = {"net": kl, "bma": 0 * t, "tempered": 0.01 + 0 * t, "leaking": 0.002 + 0 * t,
                           "plug-in": 0.1 / t, "prior average": 0.3 + 0 * t, "context counts": 0.4 / t}  # fmt: skip
                    for name, gap in far.items():
                        lost = np.cumsum(gap) * (noisy(1.0, 0.002) if own else 0.3)
                        sampled = bayes_regret + (-2.0 if name == "leaking" else lost)
                        to_net = {
                            "bma": kl,
                            "prior average": np.full(T, abs(0.3 - base)),
                            "tempered": np.full(T, abs(0.01 - base)),
                            "net": 0 * t,
                        }.get(name, gap + kl)
                        rows = zip(t, sampled, bayes_regret + lost, gap, gap**0.5, to_net, strict=True)
                        nets += [
                            cell | {"prompts": source, "predictor": name, "t": row[0]}
                            | dict(zip(REGRET_COLUMNS, map(float, row[1:]), strict=True))
                            for row in rows
                        ]  # fmt: skip
    pools = [
        {"sequences": N, "seed": seed, "steps": 3000, "tv": noisy(N**-0.4), "final_tv": noisy(N**-0.4), "fitted": noisy(-10 / N)}
        for N in (256, 1024, 4096, 16384, 65536) for seed in SEEDS
    ]  # fmt: skip
    levels = {"pair": (0.13, 0.012, 0.0115, 0.011), "markov": (0.14, 0.06, 0.02, 0.019)}
    depths = [
        {"layout": layout, "layers": L, "steps": 900, "seed": seed, "kl": noisy(level), "tv": 0.1}
        for layout, found in levels.items() for L, level in enumerate(found) for seed in SEEDS
    ]  # fmt: skip
    diversity = [
        {"layout": "regression", "dimension": 3, "tasks": M, "steps": 2000, "seed": seed, "prompts": origin, "t": t,
         "to_dmmse": noisy(0.02 * max(M, 1) ** 0.3), "to_ridge": noisy(0.2 * max(M, 1) ** -0.3), "between": 0.1, "error": 0.3,
         "zero_to_dmmse": noisy(0.9, 0.01), "zero_to_ridge": noisy(0.8, 0.01)}
        for M in (4, 16, 64, 256, ENDLESS) for seed in SEEDS for origin in ("pool", "new") for t in range(1, 13)
    ]  # fmt: skip
    found = {"nets": nets, "fits": fits, "pools": pools, "depths": depths, "diversity": diversity}
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


FRAMES = planted()


@pytest.fixture(scope="module")
def tables():
    return Tables(study, lambda name: FRAMES[name])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_hold_where_the_theory_does_and_their_controls_fail(claim, tables):
    found = judge_claim(claim, tables, COMPLETE)
    assert found.outcome == (claim.expect or "supported"), found.reason
    refuted = [control.assessment.outcome for control in found.controls]
    assert refuted == ["refuted"] * len(claim.controls), [control.assessment.reason for control in found.controls]


def spoiled(claim: str) -> dict[str, pd.DataFrame]:
    """The planted tables with the one thing changed that a claim is about."""
    frames = dict(FRAMES)
    nets = frames["nets"].copy()
    net = nets["predictor"] == "net"
    if claim == "ICL-1N":
        nets.loc[nets["predictor"] == "tempered", "to_net"] = 1e-4
    elif claim == "ICL-7":
        nets.loc[net, "kl"] *= 1.3
    elif claim == "ICL-7P":
        nets.loc[net, "sampled"] -= 0.5
    elif claim == "ICL-7S":
        nets.loc[net, "expected"] += 0.02 * nets["t"]
    elif claim == "ICL-7B":
        nets.loc[net, "kl"] /= 2
        nets.loc[net, "expected"] += 0.2
    elif claim == "ICL-5N":
        frames["pools"] = frames["pools"].assign(tv=1 / frames["pools"]["tv"])
    elif claim == "ICL-6N":
        frames["depths"] = frames["depths"].assign(layers=3 - frames["depths"]["layers"])
    elif claim == "ICL-9":
        frames["diversity"] = frames["diversity"].rename(columns={"to_dmmse": "to_ridge", "to_ridge": "to_dmmse"})
    return frames | {"nets": nets}


@pytest.mark.parametrize("claim", ["ICL-1N", "ICL-5N", "ICL-6N", "ICL-7", "ICL-7P", "ICL-7S", "ICL-7B", "ICL-9"])
def test_another_law_refutes_the_claim(claim):
    """Judged without its controls, some of which would then hold."""
    frames, declared = spoiled(claim), study.claim(claim)
    frame = declared.data(Tables(study, lambda name: frames[name]))
    assert verdict.assess(declared.kind, frame, declared.unit, declared.cases).outcome == "refuted"


def test_a_well_trained_network_would_keep_the_bound():
    """The refutation of ICL-7U is of its networks, not of the way it is judged."""
    frames, declared = dict(FRAMES), study.claim("ICL-7U")
    frames["nets"] = frames["nets"].assign(expected=0.5)  # of Bayes and of the network alike
    frame = declared.data(Tables(study, lambda name: frames[name]))
    assert verdict.assess(declared.kind, frame, declared.unit, declared.cases).outcome == "supported"


def test_the_rate_is_chosen_by_validation_alone(tables):
    assert rates(tables)["lr"].tolist() == [1e-2, 1e-2]
    frames = FRAMES | {"fits": FRAMES["fits"].assign(validation=FRAMES["fits"]["lr"])}
    other = Tables(study, lambda name: frames[name])
    assert set(curves(other, "trained")["lr"]) == {1e-3}


def test_the_crossing_is_where_the_distances_are_equal(tables):
    found = crossings(tables)
    assert sorted(found["seed"]) == list(SEEDS)
    np.testing.assert_allclose(found["value"], 10 ** (1 / 0.6), rtol=0.15)  # 0.02 M^0.3 = 0.2 M^-0.3


# Trials


def test_nothing_diverges(measured):
    for table in study.tables:
        assert set(measured[table.name]["status"]) == {"ok"}, table.name


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_draws_what_was_measured(figure, measured):
    assert figure.draw(measured).to_dict()["title"]
    assert figure.claims


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_and_control_can_be_judged_on_what_was_measured(claim, measured):
    found = judge_claim(claim, measured, COMPLETE)
    judged = [found.assessment, *(control.assessment for control in found.controls)]
    assert all(one.cases for one in judged) == (claim.id != "ICL-7S")  # 16 examples are too few for its setting


def test_training_moves_networks_towards_bayes(measured):
    start, trained = (curves(measured, which).groupby("seed")["kl_net"].mean() for which in ("start", "trained"))
    assert (trained < start / 2).all()
    loss = measured["fits"]
    assert (loss["first_loss"] > 1).all()
    best = loss[loss["steps"] == loss["steps"].max()].groupby("seed")["validation"].min()
    assert (best < 0.8 * loss.groupby("seed")["first_loss"].first()).all()


def test_what_networks_lose_is_their_divergence_from_bayes(measured):
    """Within five standard errors of test prompts that differ by about √(2 gap)."""
    frame = curves(measured)
    frame = frame[frame["t"] == frame["length"]]
    error = np.sqrt(2 * frame["gap"] / TESTS["pair"])
    assert (np.abs(frame["excess"] - frame["gap"]) < 5 * error).all()
    assert (np.abs(frame["excess"] - frame["gap"]) < 0.1 * frame["gap"]).all()
    foreign = curves(measured, prompts=SOURCES[1])
    foreign = foreign[foreign["t"] == foreign["length"]]
    assert (np.abs(foreign["excess"] - foreign["gap"]) > 0.1 * foreign["gap"]).mean() > 0.8


def test_regret_of_bayes_and_of_a_predictor_that_has_seen_the_response(measured):
    frame = curves(measured)
    assert (frame["sampled_bma"] <= np.log(frame["concepts"])).all()
    assert (frame["sampled_leaking"] < 0).all()
    assert (frame["sampled_net"] > frame["sampled_bma"]).mean() > 0.95
    for name in RIVALS:
        np.testing.assert_allclose(frame[f"sampled_{name}"], frame[f"expected_{name}"], rtol=0.1)


def test_without_an_end_of_tasks_both_bayes_predictors_are_ridge_regression(measured):
    frame = measured.part("diversity", tasks=ENDLESS)
    assert len(frame)
    assert (frame["between"] == 0).all()
    assert (frame["to_dmmse"] == frame["to_ridge"]).all()
    finite = measured["diversity"]
    assert (finite.loc[finite["tasks"] != ENDLESS, "between"] > 0).mean() > 0.9


@pytest.mark.parametrize("trial", ["nets", "pools", "depths", "diversity"])
def test_a_cell_gives_the_same_rows_alone_and_in_its_pack(trial, measured):
    """To what is left of single precision, in which networks are trained."""
    pack = next(pack for pack in reversed(plan(study, "smoke")) if pack.trial == trial and len(pack) > 1)
    alone = pack.split()[len(pack) // 2]
    for name, frame in study.run_pack(alone).items():
        there = measured[name]
        there = there[there["cell"] == alone.cells[0].id].reset_index(drop=True)
        pd.testing.assert_frame_equal(frame, there, rtol=1e-3, atol=1e-6)


def test_test_prompts_of_bayes_agree_with_its_second_computation():
    tables = concepts("markov", 8, [0], "cpu")
    _, c, r = prompts("markov", tables, 50, 16, [0], TEST)
    prior = torch.full((8,), 1 / 8, dtype=torch.float64)
    assert torch.allclose(bayes.bma(tables, prior, c, r), bayes.by_marginals(tables, prior, c, r), atol=1e-12)
