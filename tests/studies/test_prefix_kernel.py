"""The stylised model of the prefix study: its trials in one process, and its claims on planted laws."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from assay import Paper, Study, verdict
from assay.plan import plan
from assay.results import Progress, Tables, judge_claim
from studies.prefix.kernel import ARMS, DIRECTIONS, RATES, TRIALS, shown_steps, spread
from studies.prefix.kernel_claims import CLAIMS
from studies.prefix.kernel_figures import FIGURES
from studies.prefix.kernel_setting import (
    frozen_attention,
    inputs,
    over_bound,
    targets,
    without_exponential,
    without_quadratic,
)  # fmt: skip
from theory.ntk_attention.predictions import DRIFT, MOVEMENT, limit_kernel

study = Study("prefix", "Kernel", "Kernel alone.", (Paper("key", "T", ("A",), 2024),), "1", TRIALS, CLAIMS, FIGURES)
COMPLETE = {trial.name: Progress(1, 1, 0) for trial in study.trials}
SEEDS = range(12)
LENGTHS = (256, 1024, 4096, 16384)


# What the trials share


@pytest.mark.parametrize(("n", "d"), [(4, 4), (3, 5), (6, 4)])
def test_inputs_have_one_norm_and_are_orthogonal_where_there_is_room(n, d):
    X = inputs(n, d, 0.5, 3)
    gram = X @ X.T
    torch.testing.assert_close(gram.diagonal(), torch.full((n,), 0.25, dtype=torch.float64))
    across = float((gram - 0.25 * torch.eye(n, dtype=torch.float64)).abs().max())
    assert (across < 1e-12) == (n <= d)
    assert not torch.equal(X, inputs(n, d, 0.5, 4))
    assert float(targets(n, d, 3).norm()) == pytest.approx(1, rel=1e-12)


def test_wrong_limits_differ_from_the_right_one_by_what_they_forget():
    """Entry by entry, from the closed form as it is printed."""
    X = inputs(3, 2, 0.7, 0)
    theta, n, d = limit_kernel(X), 3, 2
    wrong, other, frozen = without_exponential(theta, X), without_quadratic(theta, X), frozen_attention(X)
    for i in range(n):
        for j in range(n):
            g, u = float(X[i] @ X[j]), X[i] + X[j]
            for p in range(d):
                for q in range(d):
                    at, delta = (i * d + p, j * d + q), float(p == q)
                    plain = delta * (1 + g) + float(X[j, p] * u[q] + X[i, q] * u[p])
                    quadratic = g * float(u[p] * u[q])
                    assert float(wrong[at]) == pytest.approx(plain + quadratic, abs=1e-12)
                    assert float(other[at]) == pytest.approx(math.exp(g) * plain, abs=1e-12)
                    assert float(frozen[at]) == pytest.approx(math.exp(g) * delta, abs=1e-12)


def test_the_excess_over_the_bound_is_that_of_the_worst_step():
    losses = torch.tensor([2.0, 1.0, 0.9], dtype=torch.float64)
    # 1 − lr λ/2 = 1/2: allowed are 1 and 1/2 of what are 2.
    assert over_bound(losses, 0.5, 2.0) == pytest.approx(max(math.log(1 / 2 / 0.5), math.log(0.45 / 0.25)))
    assert over_bound(torch.tensor([1.0, 0.2, 0.01]).double(), 0.5, 2.0) == pytest.approx(math.log(0.4))


def test_steps_of_curves():
    assert shown_steps(20) == [0, 1, 2, 3, 4, 6, 8, 11, 16, 20]
    assert shown_steps(1) == [0, 1]


def test_orthogonal_inputs_are_one_problem_and_directions_do_not_repeat_an_eigenvalue():
    first, other = (torch.linalg.eigvalsh(limit_kernel(inputs(4, 4, 0.5, seed))) for seed in (0, 1))
    torch.testing.assert_close(first, other, rtol=1e-12, atol=1e-12)
    index = spread(first)
    assert (len(index), index[0]) == (DIRECTIONS, 0)
    assert (torch.diff(first[index]) > 0.01 * first[-1]).all()
    assert float(first[index[-1]]) == pytest.approx(float(first[-1]), rel=1e-12)
    one, two = (torch.linalg.eigvalsh(limit_kernel(inputs(6, 4, 0.5, seed))) for seed in (0, 1))
    assert float((one - two).abs().max()) > 0.01 * float(one[-1])
    assert spread(one) == [round(q * 23 / (DIRECTIONS - 1)) for q in range(DIRECTIONS)]


def test_where_there_is_a_constant_of_the_kernels_change_there_are_runs_to_judge_it_by():
    for scale in ("smoke", "laptop", "cluster"):
        shapes = {trial: set() for trial in ("descents", "populations")}
        for pack in plan(study, scale):
            if pack.trial in shapes:
                shapes[pack.trial].add((pack["n"], pack["d"]))
        assert shapes["populations"] == {(4, 4), (6, 4)}
        assert shapes["descents"] == shapes["populations"] | ({(256, 64)} if scale == "cluster" else set())


def test_every_scale_can_be_planned_and_costs_something():
    for scale in ("smoke", "laptop", "cluster"):
        packs = plan(study, scale)
        assert {pack.trial for pack in packs} == {trial.name for trial in TRIALS}
        assert all(pack.expected_s > 0 and 0 < pack.expected_bytes < 75e9 for pack in packs)
    assert all(trial.gpus["cluster"] for trial in TRIALS if trial.name != "populations")


# Claims


def planted() -> dict[str, pd.DataFrame]:
    """Tables in which every sentence holds, with a little noise per seed."""
    dice = np.random.default_rng(0)

    def noisy(value: float, noise: float = 0.005) -> float:
        return float(value * np.exp(noise * dice.normal()))

    four = {"n": 4, "d": 4}
    kernels = [
        {"n": 6, "d": 4, "m": m, "norm": norm, "init": init, "seed": seed, "constant": constant,
         "fluctuation": noisy((constant / m) ** 0.5 if norm == 0.5 else 2 * m**-0.3),
         "no_exponential": 0.2 + noisy(m**-0.5), "no_quadratic": 0.1 + noisy(m**-0.5), "undivided": noisy(m)}
        for norm in (0.5, 1.0) for init, constant in (("sym", 6.0 if norm == 0.5 else 600.0), ("iid", 3.0 if norm == 0.5 else 300.0))
        for m in LENGTHS for seed in SEEDS
    ]  # fmt: skip
    limits = [
        {"n": n, "d": 4, "seed": seed, "smallest": noisy(1e-3), "repeated": 1e-16 * dice.normal(), "linear": 1e-16 * dice.normal()}
        for n in (6, 12) for seed in SEEDS
    ]  # fmt: skip
    descents, populations = [], []
    for n, seed in [(n, seed) for n in (4, 6) for seed in SEEDS]:
        constant = noisy(2.0 if n == 4 else 1.0, 0.3)
        shape = {"n": n, "d": 4}
        populations.append(shape | {"seed": seed, "drift_constant": constant, "movement_constant": 5.0})
        for (init, scale), exponent in MOVEMENT.items():
            for m in LENGTHS if n == 4 else LENGTHS[:-1]:
                moved, changed = 1.5 * m**exponent, constant * m ** DRIFT[init, scale]
                descents.append(
                    shape | {"m": m, "init": init, "scale": scale, "seed": seed, "movement": noisy(moved), "largest": 5 * moved,
                            "drift": noisy(changed), "predicted": moved, "frozen": 1.2 * moved, "converged": 1.1 * moved, "loss": 0.01}
                )  # fmt: skip
    convergence = [
        four | {"m": m, "arm": arm, "steps": 800, "init": init, "seed": seed, "bound": 0.006, "excess_largest": noisy(20.0),
                "excess": noisy(2.0) * (-0.1 if arm == "distinct inputs" else 1.0)}
        for m in LENGTHS for arm in ARMS for init in ("sym", "iid") for seed in SEEDS
    ]  # fmt: skip
    losses = [
        four | {"m": m, "arm": arm, "steps": 800, "init": "sym", "seed": seed, "step": t, "loss": noisy(0.9**t),
                "linearised": 0.9**t, "allowed": 0.95**t}
        for m in LENGTHS for arm in ARMS for seed in SEEDS for t in (0, 1, 8)
    ]  # fmt: skip
    rates = []
    for m in LENGTHS:
        for init in ("sym", "iid"):
            for direction in range(DIRECTIONS):
                for seed in SEEDS:
                    predicted = 0.004 * 2**direction
                    own = noisy(predicted, 2.0 / m**0.5)
                    rates.append(
                        four | {"m": m, "steps": 300, "init": init, "direction": direction, "seed": seed, "eigenvalue": 20 * predicted,
                                "predicted": predicted, "doubled": 2 * predicted, "own_kernel": own, "measured": noisy(own, 1e-4),
                                "whole_run": noisy(0.5 * predicted**0.8), "until": 30.0, "excess": -0.005}
                    )  # fmt: skip
    found = {
        "kernels": kernels, "limits": limits, "descents": descents, "populations": populations,
        "convergence": convergence, "losses": losses, "rates": rates,
    }  # fmt: skip
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


FRAMES = planted()


@pytest.fixture(scope="module")
def tables():
    return Tables(study, lambda name: FRAMES[name])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_hold_where_the_theory_does_and_their_controls_fail(claim, tables):
    found = judge_claim(claim, tables, COMPLETE)
    assert found.outcome == "supported", found.reason
    refuted = [control.assessment.outcome for control in found.controls]
    assert refuted == ["refuted"] * len(claim.controls), [control.assessment.reason for control in found.controls]


def spoiled(claim: str) -> dict[str, pd.DataFrame]:
    """The planted tables with the one thing changed that a claim is about."""
    frames = {name: frame.copy() for name, frame in FRAMES.items()}
    kernels, descents, rates = frames["kernels"], frames["descents"], frames["rates"]
    twins = (descents["init"] == "sym") & (descents["scale"] == "ntk") & (descents["n"] == 6)
    if claim == "NTK-1":
        kernels["fluctuation"] *= kernels["m"] ** 0.2
    elif claim == "NTK-1C":
        kernels["fluctuation"] *= 1.2
    elif claim == "NTK-1L":
        frames["limits"].loc[3, "smallest"] = 0.0
    elif claim == "NTK-2":
        descents.loc[twins, "movement"] *= descents["m"] ** -0.2
    elif claim == "NTK-2A":
        descents.loc[twins, "movement"] *= 1.04
    elif claim == "NTK-3":
        descents.loc[twins, "drift"] = descents["m"] ** -0.25
    elif claim == "NTK-3S":
        descents.loc[twins, "drift"] *= descents["m"] ** 0.2
    elif claim == "NTK-3C":
        descents.loc[twins, "drift"] *= 1.5
    elif claim == "NTK-4":
        rates.loc[(rates["m"] == 4096) & (rates["seed"] == 2) & (rates["direction"] == 1), "excess"] = 0.01
    elif claim == "NTK-4R":
        rates["measured"] *= rates["predicted"] ** 0.1
    elif claim == "NTK-4Q":
        rates.loc[(rates["m"] == max(LENGTHS)) & (rates["seed"] == 2) & (rates["direction"] == 1), "measured"] *= 1.3
    elif claim == "NTK-4K":
        rates.loc[(rates["m"] == 256) & (rates["seed"] == 2) & (rates["direction"] == 1), "measured"] *= 1.03
    return frames


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_another_law_refutes_the_claim(claim):
    """Judged without its controls, some of which would then hold."""
    frames = spoiled(claim.id)
    frame = claim.data(Tables(study, lambda name: frames[name]))
    assert verdict.assess(claim.kind, frame, claim.unit, claim.cases).outcome == "refuted"


def test_a_bound_that_is_never_small_voids_the_claim():
    frames = FRAMES | {"convergence": FRAMES["convergence"].assign(bound=0.5)}
    found = judge_claim(study.claim("NTK-4"), Tables(study, lambda name: frames[name]), COMPLETE)
    assert found.outcome == "void"
    assert "the bound falls below 1 %" in found.reason


def test_short_prefixes_may_break_the_bound():
    """It is claimed from m = 1024 on."""
    rates = FRAMES["rates"]
    frames = FRAMES | {"rates": rates.assign(excess=np.where(rates["m"] < 1024, 0.1, rates["excess"]))}
    assert judge_claim(study.claim("NTK-4"), Tables(study, lambda name: frames[name]), COMPLETE).outcome == "supported"


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
    assert all(one.cases for one in (found.assessment, *(control.assessment for control in found.controls)))


@pytest.mark.parametrize("claim", ["NTK-1", "NTK-1L", "NTK-2", "NTK-3"])
def test_claims_that_hold_at_every_scale(claim, measured):
    declared = study.claim(claim)
    assessment = verdict.assess(declared.kind, declared.data(measured), declared.unit, declared.cases)
    assert assessment.outcome in ("supported", "inconclusive"), assessment.reason


def test_what_is_predicted_without_a_constant_is_what_happens(measured):
    frame = measured["descents"]
    frame = frame[(frame["m"] == 4096) & (frame["init"] == "sym") & (frame["scale"] != "mean-field")]
    assert set(frame["n"]) == {4, 6}
    np.testing.assert_allclose(frame["movement"], frame["predicted"], rtol=0.06)
    joined = frame[frame["scale"] == "paper"].merge(measured["populations"], on=["n", "d", "seed"])
    np.testing.assert_allclose(joined["drift"] * joined["m"] ** 2, joined["drift_constant"], rtol=0.6)
    # Before convergence the two constants differ; the one of finitely many steps is that of the population.
    np.testing.assert_allclose(joined["predicted"] * joined["m"], joined["movement_constant"], rtol=1e-5)
    assert (frame["converged"] > 1.01 * frame["predicted"]).all()


def test_losses_follow_the_fixed_kernel_and_stay_below_the_bound(measured):
    frame = measured.part("losses", arm="distinct inputs", m=4096, init="sym")
    early = frame[frame["linearised"] > 0.03]
    np.testing.assert_allclose(early["loss"], early["linearised"], rtol=0.15)
    assert (frame["loss"] <= frame["allowed"] + 1e-12).all()
    assert (frame.loc[frame["step"] == 800, "allowed"] < 0.01).all()
    floor = measured.part("losses", arm="two equal inputs", m=4096, init="sym", step=800)
    assert (floor["loss"] > 0.02).all()
    # Asked for f(0) + y, networks of independent signs have the same floor, however large their f(0).
    other = measured.part("losses", arm="two equal inputs", m=4096, init="iid", step=800)
    np.testing.assert_allclose(other["loss"], floor["loss"], rtol=0.1)
    grown = measured.part("losses", arm="step too large", step=20)
    assert (grown.loc[grown["init"] == "sym", "loss"] > 100).all()


def test_rates_are_those_of_the_networks_own_kernel(measured):
    frame = measured["rates"]
    np.testing.assert_allclose(frame["measured"], frame["own_kernel"], rtol=0.02)
    assert (frame["until"] > 0).all()
    assert (np.abs(frame["measured"] / frame["predicted"] - 1) > 0.02).any()


def test_the_mean_field_scale_moves_as_far_at_any_length(measured):
    frame = measured.part("descents", scale="mean-field", init="sym", n=4)
    means = frame.groupby("m")["movement"].mean()
    assert 0.5 < means.loc[4096] / means.loc[64] < 2
    assert set(RATES) == set(measured["descents"]["scale"])


@pytest.mark.parametrize("trial", [trial.name for trial in TRIALS])
def test_a_cell_gives_the_same_rows_alone_and_in_its_pack(trial, measured):
    packs = [pack for pack in plan(study, "smoke") if pack.trial == trial and len(pack) > 1]
    pack = min(packs, key=lambda pack: pack.expected_s)
    for alone in pack.split()[:: max(1, len(pack) // 3)]:
        for name, frame in study.run_pack(alone).items():
            there = measured[name]
            there = there[there["cell"] == alone.cells[0].id].reset_index(drop=True)
            pd.testing.assert_frame_equal(frame, there, rtol=1e-10, atol=1e-14)
