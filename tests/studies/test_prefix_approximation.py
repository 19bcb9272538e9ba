"""What stands in for a prefix: its trials in one process, and its claims on planted laws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from assay import Paper, Study, verdict
from assay.plan import plan
from assay.results import Progress, Tables, judge_claim
from studies.prefix.approximation import ARMS, COST_ARMS, LENGTHS, SIZE_MAPS, TRIALS
from studies.prefix.approximation_claims import CLAIMS
from studies.prefix.approximation_figures import FIGURES
from studies.prefix.approximation_frames import against, limit
from studies.prefix.fitting import FIT_KINDS, FITTED_MAPS
from studies.prefix.prefixes import (
    DEGREES,
    KINDS,
    maps,
)
from theory.ntk_attention.bounds import parity_factor
from theory.ntk_attention.costs import exact_flops, ntk_flops, ntk_parameters

study = Study("prefix", "T", "S.", (Paper("key", "T", ("A",), 2024),), "1", TRIALS, CLAIMS, FIGURES)
COMPLETE = {trial.name: Progress(1, 1, 0) for trial in study.trials}
SEEDS = range(6)
D = 8


def test_every_scale_can_be_planned_and_costs_something():
    for scale in ("smoke", "laptop", "cluster"):
        packs = plan(study, scale)
        assert {pack.trial for pack in packs} == {trial.name for trial in TRIALS}
        assert all(pack.expected_s > 0 for pack in packs)


# Claims


def planted() -> dict[str, pd.DataFrame]:
    """Tables in which every sentence holds, and those declared false or empty do not, with a little noise per seed."""
    dice = np.random.default_rng(0)

    def noisy(value: float, noise: float = 0.02) -> float:
        return float(value * np.exp(noise * dice.normal()))

    errors = []
    for m in (16, 64, 256, 1024, 4096, 16384):
        for kind in KINDS:
            for spread, logit in ((0.1, 1.0), (0.3, 3.0), (1.0, 10.0)):
                for seed in SEEDS:
                    cell = {
                        "m": m,
                        "d": D,
                        "kind": kind,
                        "spread": spread,
                        "seed": seed,
                        "logit": logit,
                        "value": 2.0,
                        "share": 0.99,
                    }
                    for arm in ARMS:
                        for name in maps(D):
                            g = int(name[-1]) if name.startswith("degree") else -1
                            error = spread ** (g + 1) / math.factorial(g + 1)
                            error = error if g >= 0 else {"ELU+1": 7, "random": 0.4}.get(name, 2) * spread
                            if kind == "gaussian" and g % 2:
                                error *= m**-0.5
                            if kind == "iid values":
                                error *= m**-0.5
                            if arm == "wrong scale":
                                error = max(error, spread)
                            if arm == "keys only":
                                error = 3.0
                            row = {
                                "arm": arm,
                                "map": name,
                                "error": noisy(error),
                                "relative": error,
                                "nonpositive": False,
                            }
                            errors.append(cell | row)
    parity = [
        {"m": 4**8, "d": D, "variance": v, "seed": seed, "degree": g, "factor": parity_factor(g, v) + 0.005 * dice.normal()}
        for v in (0.25, 1.0) for seed in SEEDS for g in DEGREES
    ]  # fmt: skip
    counts, sizes, times, fits, leaks = [], [], [], [], []
    for L, d in ((64, 16), (256, 64)):
        for m in LENGTHS:
            extra = 2 * m * d * d
            flops = {"exact": exact_flops(L, m, d), "folded": ntk_flops(L, d, d), "rebuilt": ntk_flops(L, d, d) + extra}
            held = {"exact": 8 * m * (L + d), "folded": 4 * L * (L + d), "rebuilt": 8 * m * d}
            counts += [
                {"tokens": L, "d": d, "arm": a, "m": m, "flops": flops[a], "held_bytes": held[a]} for a in COST_ARMS
            ]
            for name, r in zip(SIZE_MAPS, (d, d + 1, d * d), strict=True):
                sizes.append(
                    {"tokens": L, "d": d, "map": name, "m": m, "features": r, "z_size": r * d, "kappa_size": r}
                )
    for seed in SEEDS:
        for m in (4, 16, 64, 256, 1024, 4096, 16384, 65536):
            base = {"tokens": 64, "d": 64, "seed": seed, "m": m}
            seconds = {"exact": 1e-4 + 1e-6 * m, "folded": 2e-4, "rebuilt": 1e-5 + 2e-7 * m}
            times += [base | {"arm": arm, "seconds": noisy(s)} for arm, s in seconds.items()]
        for m in (2, 16, 128, 1024):
            for kind in FIT_KINDS:
                for spread in (0.3, 1.0):
                    cell = {"m": m, "d": D, "kind": kind, "spread": spread, "seed": seed}
                    for name in FITTED_MAPS:
                        error = 0.4 if name == "degree 0" else 0.08
                        fits.append(
                            cell
                            | {
                                "map": name,
                                "fitted": noisy(error),
                                "start": 1.0,
                                "other_prefix": noisy(0.7),
                                "training": error,
                                "nonpositive": 0.0,
                            }
                        )
                    leaks.append(
                        cell
                        | {"leaked": noisy(1e-4), "nothing": 1e-16, "noise": noisy(0.4), "leaked_other": noisy(0.3)}
                    )
    found = {
        "errors": errors,
        "parity": parity,
        "counts": counts,
        "sizes": sizes,
        "times": times,
        "fits": fits,
        "leaks": leaks,
    }
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


FRAMES = planted()


def told(frames: dict[str, pd.DataFrame]) -> Tables:
    return Tables(study, lambda name: frames[name])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_hold_where_the_theory_does_and_their_controls_fail(claim):
    found = judge_claim(claim, told(FRAMES), COMPLETE)
    assert found.outcome == (claim.expect or "supported"), found.reason
    for control in found.controls:
        expected = "supported" if control.trivial else "refuted"
        assert control.assessment.outcome == expected, (control.name, control.assessment.reason)


def spoiled(claim: str) -> dict[str, pd.DataFrame]:
    """The planted tables with the one thing changed that a claim is about."""
    frames = {name: frame.copy() for name, frame in FRAMES.items()}
    errors = frames["errors"]
    right = errors["arm"] == "folded"
    if claim in ("NTK-5a", "NTK-5g"):
        errors.loc[right & (errors["map"] != "degree 0"), "error"] = 0.09
    elif claim == "NTK-5b":
        errors.loc[right & (errors["map"] == "degree 4") & (errors["seed"] == 2), "error"] = 0.5
    elif claim == "NTK-5v":
        errors.loc[right, "error"] *= errors["m"] ** 0.5
    elif claim == "NTK-5p":
        frames["parity"]["factor"] = 1.0
    elif claim == "NTK-6f":
        frames["counts"]["flops"] += 1
    elif claim == "NTK-6b":
        frames["counts"]["held_bytes"] += frames["counts"]["m"]
    elif claim == "NTK-6w":
        frames["times"]["seconds"] *= frames["times"]["m"] ** 0.15
    elif claim == "NTK-6x":
        frames["times"]["seconds"] *= frames["times"]["m"] ** -0.3
    elif claim == "NTK-7":
        frames["sizes"]["kappa_size"] = 0
    elif claim == "NTK-9":
        frames["fits"].loc[frames["fits"]["kind"] == "topics", "fitted"] *= 3
    elif claim == "NTK-9s":
        frames["fits"].loc[frames["fits"]["kind"] == "shifted", "fitted"] *= 3
    elif claim == "NTK-9x":
        frames["leaks"]["leaked"] = frames["leaks"]["noise"]
    return frames


@pytest.mark.parametrize("claim", [claim.id for claim in CLAIMS if claim.expect != "refuted"])
def test_another_law_refutes_the_claim(claim):
    declared = study.claim(claim)
    frame = declared.data(told(spoiled(claim)))
    assert verdict.assess(declared.kind, frame, declared.unit, declared.cases).outcome == "refuted"


@pytest.mark.parametrize("claim", ["NTK-5c", "NTK-5e", "NTK-5k"])
def test_what_is_declared_refuted_could_have_been_supported(claim):
    frames = {name: frame.copy() for name, frame in FRAMES.items()}
    errors = frames["errors"]
    if claim == "NTK-5c":
        errors["error"] *= errors["m"] ** -0.5
    else:
        own = {"NTK-5e": "ELU+1", "NTK-5k": "ELU+1 calibrated"}[claim]
        errors.loc[errors["map"] == own, "error"] /= 10
    declared = study.claim(claim)
    frame = declared.data(told(frames))
    assert verdict.assess(declared.kind, frame, declared.unit, declared.cases).outcome == "supported"


def test_no_law_in_m_is_judged_on_taylor_maps_alone():
    maps_judged = set(study.claim("NTK-5c").data(told(FRAMES))["map"])
    assert maps_judged == {"degree 1", "degree 2", "degree 3", "ELU+1", "random"}


def test_small_logits_of_topics_say_nothing_of_rows_of_one_gaussian():
    frames = {name: frame.copy() for name, frame in FRAMES.items()}
    fits = frames["fits"]
    fits.loc[fits["kind"] == "topics", "fitted"] = 0.5
    found = {name: judge_claim(study.claim(name), told(frames), COMPLETE).outcome for name in ("NTK-9", "NTK-9s")}
    assert found == {"NTK-9": "refuted", "NTK-9s": "supported"}


def test_prefixes_as_short_as_an_input_are_no_case_of_the_affine_limit():
    assert set(study.claim("NTK-9s").data(told(FRAMES))["m"]) == {128, 1024}
    assert set(study.claim("NTK-9").data(told(FRAMES))["m"]) == {2, 16, 128, 1024}


def test_fits_that_cross_a_pole_are_judged_and_counted():
    frames = {name: frame.copy() for name, frame in FRAMES.items()}
    fits = frames["fits"]
    one = (fits["seed"] == 1) & (fits["m"] == 128) & (fits["map"] == "degree 1")
    fits.loc[one, "nonpositive"] = 0.01
    assert len(study.claim("NTK-9").data(told(frames))) == len(study.claim("NTK-9").data(told(FRAMES)))
    chart = study.figure("fits").draw(told(frames)).to_dict()
    assert f"{int(one.sum())} of {len(fits)} fits" in " ".join(chart["title"]["subtitle"])


def test_settings_with_a_larger_logit_are_not_judged_by_degree():
    frame = study.claim("NTK-5a").data(told(FRAMES))
    assert set(frame["spread"]) == {0.1}
    frames = {name: frame.copy() for name, frame in FRAMES.items()}
    one = (frames["errors"]["seed"] == 1) & (frames["errors"]["m"] == 64)
    frames["errors"].loc[one, "logit"] = 1.6
    assert 64 not in set(study.claim("NTK-5a").data(told(frames))["m"])


# Trials


def test_nothing_diverges(measured):
    for table in study.tables:
        assert set(measured[table.name]["status"]) == {"ok"}, table.name


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_draws_what_was_measured(figure, measured):
    assert figure.draw(measured).to_dict()["title"]
    assert figure.claims


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_draws_a_whole_grid(figure):
    assert figure.draw(told(FRAMES)).to_dict()["title"]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_and_control_can_be_judged_on_what_was_measured(claim, measured):
    found = judge_claim(claim, measured, COMPLETE)
    small = claim.id in ("NTK-5a", "NTK-5g")  # at this scale logits are never small
    judged = [found.assessment, *(control.assessment for control in found.controls)]
    assert all(one.cases for one in judged) or small


def test_every_error_keeps_to_its_bound(measured):
    frame = measured.part("errors", arm="folded")
    frame = frame[frame["map"].str.startswith("degree")]
    rows = frame[["map", "logit", "value", "share", "error"]].itertuples(index=False)
    limits = [(limit(int(name[-1]), *rest), error) for name, *rest, error in rows]
    assert all(error <= bound for bound, error in limits)
    assert sum(bound < math.inf for bound, _ in limits) > len(limits) / 10


def test_counts_of_operations_parameters_and_memory_are_exact(measured):
    counts, sizes = measured["counts"], measured["sizes"]
    for row in counts[counts["arm"] != "rebuilt"].itertuples():
        law = exact_flops(row.tokens, row.m, row.d) if row.arm == "exact" else ntk_flops(row.tokens, row.d, row.d)
        assert row.flops == law
    assert counts.loc[counts["arm"] == "folded", "held_bytes"].nunique() == 1
    assert counts.loc[counts["arm"] == "exact", "held_bytes"].is_monotonic_increasing
    elu = sizes[sizes["map"] == "ELU+1"]
    assert set(elu["z_size"] + elu["kappa_size"]) == {ntk_parameters(64)}


@pytest.fixture(scope="module")
def enough_seeds():
    """Errors on shifted prefixes at the short end of the laptop scale."""
    frames = []
    for pack in plan(study, "laptop"):
        if pack.trial == "errors" and pack["m"] in (64, 256):
            cells = [cell for cell in pack.cells if cell.factors["kind"] == "shifted" and cell.factors["spread"] < 1]
            frames.append(study.run_pack(replace(pack, cells=tuple(cells)))["errors"])
    return told({"errors": pd.concat(frames, ignore_index=True)})


@pytest.mark.parametrize(
    ("name", "expected"), [("degree 1", "supported"), ("degree 2", "supported"), ("ELU+1", "refuted")]
)
def test_maps_that_approximate_exp_pass_what_elu_does_not(name, expected, enough_seeds):
    """Otherwise the frame of NTK-5e could refute any map."""
    declared = study.claim("NTK-5e")
    found = verdict.assess(declared.kind, against(name)(enough_seeds), declared.unit, declared.cases)
    assert len(found.cases) == 4
    assert found.outcome == expected, found.reason


def test_without_z_and_kappa_a_fit_has_changed_nothing(measured):
    frame = measured["fits"]
    np.testing.assert_allclose(frame["start"], 1.0, rtol=1e-12)
    assert (frame["fitted"] < 0.6).all()
    assert (frame["training"] < 0.6).all()
    assert frame["nonpositive"].between(0, 1).all()
    leaks = measured["leaks"]
    assert (leaks["nothing"] < 1e-12).all()
    assert (leaks["leaked"] < leaks["noise"] / 5).all()


@pytest.mark.parametrize("trial", ["errors", "parity", "fitted"])
def test_a_cell_gives_the_same_rows_alone_and_in_its_pack(trial, measured):
    """Errors are differences of outputs of order one."""
    pack = next(pack for pack in plan(study, "smoke") if pack.trial == trial and len(pack) > 1)
    alone = pack.split()[len(pack) // 2]
    for name, frame in study.run_pack(alone).items():
        there = measured[name]
        there = there[there["cell"] == alone.cells[0].id].reset_index(drop=True)
        pd.testing.assert_frame_equal(frame, there, rtol=1e-10, atol=1e-12)
