"""The Hessian study: its networks, its trials in one process, and its claims judged on planted laws."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pandas as pd
import pytest
import torch

from assay import AssayError, verdict
from assay.plan import plan
from assay.results import Progress, Tables, judge_claim
from studies.hessian import study
from studies.hessian.frames import bbp, readings
from studies.hessian.networks import CLASSES, draw, layers, pixels
from studies.hessian.trials import (
    BLOB_STEPS,
    EARLY,
    EXACT_NUMBERS,
    EXACT_STEPS,
    LATE,
    PATHS,
    SPIKES,
    TOP,
    WIDTH_STEPS,
    blob_sizes,
    count_above,
    parameters,
    permuted,
)  # fmt: skip
from theory.ensemble import gaussian_mlp, normal

SEEDS = range(8)
COMPLETE = {trial.name: Progress(1, 1, 0) for trial in study.trials}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("sizes", "M"),
    [(blob_sizes(k), M) for k, M in ((2, 4022), (5, 4115), (10, 4270), (20, 4580), (50, 5510))]
    + [(layers("mnist", n, 1), M) for n, M in ((10, 7960), (30, 23860), (50, 39760), (70, 55660))]
    + [((2, n, n, 2), M) for n, M in ((2, 18), (6, 74), (10, 162), (14, 282), (18, 434))],
)
def test_networks_have_as_many_parameters_as_the_papers_say(sizes, M):
    assert parameters(sizes) == M
    mlp = gaussian_mlp(sizes, "relu", [0], 0.1)
    assert sum(t[0].numel() for t in (*mlp.weights, *mlp.biases)) == M


def test_a_seed_draws_its_examples_and_the_mean_image_stays_in():
    x, y = draw("digits", 50, [3, 4, 3], "cpu")
    full, labels = pixels("digits")
    assert x.shape == (3, 50, 64)
    assert y.shape == (3, 50, CLASSES)
    assert torch.equal(x[0], x[2])
    assert not torch.equal(x[0], x[1])
    assert abs(full.mean()) < 1e-12
    assert full.max() - full.min() == pytest.approx(1)
    assert np.abs(full.mean(axis=0)).max() > 0.2
    where = [int(np.flatnonzero((full == row).all(axis=1))[0]) for row in x[0].numpy()]
    assert len(set(where)) == 50
    assert (labels[where] == y[0].argmax(-1).numpy()).all()


def test_cluster_scale_reads_mnist_from_the_users_disk(tmp_path, monkeypatch):
    pixels.cache_clear()
    monkeypatch.delenv("ASSAY_MNIST", raising=False)
    with pytest.raises(AssayError, match="set ASSAY_MNIST"):
        pixels("mnist")
    dice = np.random.default_rng(0)
    images, labels = dice.integers(0, 256, (20, 28, 28), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    monkeypatch.setenv("ASSAY_MNIST", str(tmp_path))
    x, y = draw("mnist", 12, [0, 1], "cpu")
    assert (x.shape, y.shape) == ((2, 12, 784), (2, 12, 10))
    pixels.cache_clear()


def test_reordered_hidden_units_are_the_same_function_elsewhere():
    mlp = gaussian_mlp((4, 7, 3), "relu", [0, 1], 1.0)
    other, x = permuted(mlp), normal((5, 4), "inputs")
    assert torch.allclose(mlp.predict(x), other.predict(x), rtol=1e-13)
    assert float((mlp.weights[0] - other.weights[0]).norm()) > 1


def test_a_count_that_the_recorded_eigenvalues_do_not_reach_is_no_count():
    assert count_above([1.0, 0.5, 0.05], 0.1) == 2
    assert np.isnan(count_above([1.0, 0.5, 0.2], 0.1))


# Claims


def planted() -> dict[str, pd.DataFrame]:
    """Tables in which every sentence of the papers holds, with a little noise per seed."""
    dice = np.random.default_rng(0)

    def noisy(value: float, noise: float = 0.02) -> float:
        return float(value * np.exp(noise * dice.normal()))

    rank = np.arange(1, TOP + 1)
    widths = [
        {"loss_function": loss, "depth": depth, "activation": phi, "width": n, "parameters": 75 * n + 10, "seed": seed,
         "t": t, "eta_t": 0.2 * t, "train_accuracy": 1.0, "examples": 200, "above_hundredth": noisy(40.0), "above_tenth": noisy(9.0),
         "top": list(noisy(1.0) / rank * ((75 * n) ** 0.4 if loss == "mse" else 1 / t))}
        for loss, depth, phi in (("xent", 1, "relu"), ("mse", 1, "relu"), ("xent", 2, "relu"), ("xent", 1, "tanh"))
        for n in (20, 40, 80) for seed in SEEDS for t in WIDTH_STEPS
    ]  # fmt: skip

    def count(k: int, t: int, labels: str) -> int:
        return k if t and labels == "classes" else 1

    clusters = [
        {"activation": phi, "examples": 400, "clusters": k, "centres": centres, "labels": labels, "seed": seed, "t": t,
         "ratio": count(k, t, labels), "class_edge": count(k, t, labels)}
        for phi in ("relu", "tanh") for k in (2, 5, 10, 20) for centres in ("random", "orthogonal")
        for labels in ("classes", "random") for seed in range(10) for t in (0, BLOB_STEPS)
    ]  # fmt: skip
    exact = []
    for phi in ("relu", "tanh"):
        for n in (6, 12, 24):
            for seed in SEEDS:
                for i, t in enumerate(EXACT_STEPS):
                    error = noisy((3.0, 0.6, 0.1, 0.01)[i]) if t != 300 else noisy(0.1)
                    lowest = noisy((0.5, 0.05, 0.01, 0.002)[i])
                    exact.append(
                        {"activation": phi, "examples": 150, "width": n, "parameters": 75 * n + 10, "seed": seed, "t": t,
                         "ggn_error": error, "fisher_error": noisy(20.0), "diagonal_error": noisy(0.5),
                         "largest_shift": 0.9 * lowest, "norm_r": lowest * 1.1, "norm_r_readout": 0.0,
                         "lowest_h": -lowest, "lowest_g": -1e-17, "lowest_r": -1.05 * lowest, "negative": noisy(0.11),
                         "clearly_negative": noisy(1e-4 * n), "zero": 0.4,
                         "top_h": list(1 / rank), "top_g": list(1 / rank)}
                    )  # fmt: skip
    assert set(EXACT_NUMBERS) <= set(exact[0])
    separability = [
        {"width": n, "std": std, "seed": seed, "top": [noisy(std**4)], "ratio": 2, "class_edge": 2}
        for n in (4, 10) for std in (0.25, 0.5, 1.0) for seed in SEEDS
    ]  # fmt: skip
    batches = [
        {"arm": arm, "seed": seed, "t": t, "ratio": 9, "top": [noisy(1.1 if arm == "large" else 1.0) * 2000 / t]}
        for arm in ("large", "small") for seed in SEEDS for t in (EARLY, *LATE)
    ]  # fmt: skip
    alphas = np.linspace(-0.5, 1.5, 81).round(12)
    height = {"continued": 0.0, "same start": 0.0, "other start": 0.4, "permuted": 0.6}
    lines = [
        {"path": path, "seed": seed, "alpha": alpha, "loss": 0.02 + noisy(height[path]) * max(0.0, alpha * (1 - alpha) * 4)}
        for path in PATHS for seed in SEEDS for alpha in alphas
    ]  # fmt: skip
    spikes = []
    for M, N in ((1600, 800), (600, 1200)):
        alpha = M / N
        for spike in SPIKES:
            for seed in SEEDS:
                above = spike > 1 + alpha**0.5
                top = bbp(spike, alpha) if above else (1 + alpha**0.5) ** 2 * 0.99
                spikes.append({"dimensions": M, "examples": N, "spike": spike, "seed": seed, "largest": noisy(top, 1e-3),
                               "above_hundredth": min(1.0, N / M)})  # fmt: skip
    found = {"widths": widths, "clusters": clusters, "exact": exact, "separability": separability, "batches": batches,
             "lines": lines, "spikes": spikes}  # fmt: skip
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


@pytest.fixture(scope="module")
def tables():
    frames = planted()
    return Tables(study, lambda name: frames[name])


@pytest.mark.parametrize("claim", study.claims, ids=lambda claim: claim.id)
def test_claims_hold_where_the_papers_do_and_their_controls_fail(claim, tables):
    found = judge_claim(claim, tables, COMPLETE)
    assert found.outcome == (claim.expect or "supported"), found.reason
    assert [control.assessment.outcome for control in found.controls] == ["refuted"] * len(claim.controls)


def test_detectors_that_contradict_each_other_leave_the_claim_undecided(tables):
    frame = tables["clusters"]
    frame["class_edge"] = np.where(frame["clusters"] == 20, 15, frame["class_edge"])
    bent = Tables(study, lambda name: frame)
    assert judge_claim(study.claim("HES-2K"), bent, COMPLETE).outcome == "inconclusive"
    frame["ratio"] = np.where(frame["clusters"] == 20, 15, frame["ratio"])
    claim = study.claim("HES-2K")
    found = verdict.assess(claim.kind, claim.data(Tables(study, lambda name: frame)), claim.unit, claim.cases)
    assert found.outcome == "refuted"
    votes = readings(lambda _: frame[frame["clusters"] == 5])(bent)
    assert set(votes["detector"]) == {"ratio", "class_edge"}


def test_without_a_barrier_to_compare_with_there_is_no_verdict_on_one_basin(tables):
    frame = tables["lines"]
    frame["loss"] = 0.02
    assert judge_claim(study.claim("HES-8"), Tables(study, lambda name: frame), COMPLETE).outcome == "void"


@pytest.mark.parametrize("claim", ["HES-3", "HES-3B", "HES-T", "HES-6F", "HES-7"])
def test_another_law_refutes_the_claim(claim, tables):
    """Judged without its controls, some of which would then hold."""

    def bent(name: str) -> pd.DataFrame:
        frame = tables[name]
        if name == "widths":
            grows = frame["parameters"] ** 0.5
            tops = zip(frame["top"], grows, frame["t"], strict=True)
            return frame.assign(
                top=[list(np.array(top) * g * t**0.5) for top, g, t in tops],
                above_hundredth=frame["above_hundredth"] * grows,
            )
        if name == "exact":
            return frame.assign(negative=frame["negative"] * frame["parameters"] ** 0.5)
        return frame.assign(arm=frame["arm"].map({"large": "small", "small": "large"}))

    declared = study.claim(claim)
    found = verdict.assess(declared.kind, declared.data(Tables(study, bent)), declared.unit, declared.cases)
    assert found.outcome == "refuted"


# Trials


@pytest.mark.parametrize("trial", ["exact", "separability", "spikes", "batches"])
def test_a_cell_gives_the_same_rows_alone_and_in_its_pack(trial):
    pack = next(pack for pack in plan(study, "smoke") if pack.trial == trial)
    together = study.run_pack(pack)
    alone = pack.split()[len(pack) // 2]
    for name, frame in study.run_pack(alone).items():
        there = together[name][together[name]["cell"] == alone.cells[0].id].reset_index(drop=True)
        lists = [column for column in frame if isinstance(frame[column].iloc[0], list)]
        pd.testing.assert_frame_equal(frame.drop(columns=lists), there.drop(columns=lists), rtol=1e-3, atol=1e-7)
        for column in lists:
            for one, other in zip(frame[column], there[column], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(one[0]))


def test_the_upper_end_of_a_trained_network_is_that_of_its_whole_hessian():
    pack = next(pack for pack in plan(study, "smoke") if pack.trial == "clusters" and pack["clusters"] == 2).split()[0]
    found = study.run_pack(pack)["clusters"]
    assert list(found["t"]) == [0, BLOB_STEPS]
    assert (found["residual"] < 1e-6).all()
    trained = found.iloc[1]
    assert trained["train_accuracy"] == 1
    top = np.array(trained["top"])
    assert (np.diff(top) <= 0).all()
    assert trained["class_edge"] == (top > trained["edge"] + 1e-6 * top[0]).sum() <= 2


def test_every_scale_can_be_planned():
    for scale in ("smoke", "laptop", "cluster"):
        assert plan(study, scale)
    for figure in study.figures:
        assert figure.claims
