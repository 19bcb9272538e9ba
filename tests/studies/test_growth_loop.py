"""The loop of growing runs: the optimiser, the rate, images and noise, what a recovery is, and CIFAR-10 from files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay import AssayError, Paper, Study
from assay.plan import plan
from studies.growth import growing
from studies.growth.growing import PROTOCOLS, SETTINGS, flipped, grower, room, start, steer, task
from studies.growth.runs import TRIALS, arms, outcome, planned
from studies.growth.runs_claims import CLAIMS
from theory.growth.decide import Candidate
from theory.growth.network import Architecture, initial
from theory.growth.training import Training, evaluate

study = Study("growth", "Runs", "Runs alone.", (Paper("key", "T", ("A",), 2024),), "1", TRIALS, CLAIMS)


def test_a_restarted_optimiser_steps_as_a_new_one():
    to = task("digits", 4, 0.0, 0)
    begin = initial(start("digits", 4, "none"), [0])
    training = Training(begin, *to.train, [0], batch=64)
    training.run(5)
    (candidate, *_) = room(training.net, PROTOCOLS["digits"])
    grown = growing.expanded(training.net, candidate, 0, to.train[0][:32])
    fresh = Training(grown.net.copy(), *to.train, [0], batch=64)
    fresh.steps = 5  # the same examples
    state = fresh.state()
    state["born"], state["ages"] = (5,), {name: torch.zeros_like(age) for name, age in state["ages"].items()}
    fresh = Training.resumed(state, *to.train)
    growing.adopt(training, grown, to, restart=True)
    training.run(3)
    fresh.run(3)
    for name, p in training.net.parameters.items():
        torch.testing.assert_close(p, fresh.net.parameters[name], rtol=0, atol=0)


def test_a_box_kernel_is_judged_before_any_training_and_after_it():
    """What is kept of it is what a fresh expansion gives, not what is left of one that was trained."""
    to, protocol = task("digits", 6, 0.0, 1), replace(PROTOCOLS["digits"], window=2)
    training = Training(initial(start("digits", 6, "none"), [1]), *to.train, [1], batch=64, rate=5e-3)
    while training.epoch < protocol.warm_up:
        training.finish_epoch()
    net = training.net.copy()
    before = training.state()
    state = {"rows": [{"test": [0.0]}], "events": [], "recoveries": [], "score_s": 0.0}
    grower(to, SETTINGS["always"], protocol, 1, box=True)(training, state, lambda: None)
    ((event,), (recovery,)) = state["events"], state["recoveries"]
    x = to.train[0][: protocol.probe]
    box = growing.expanded(net, Candidate("identity", event["block"], 0, 0), 1, x, "box")
    assert recovery["box_now"] == float(evaluate(box.net, *to.test)[1])
    reached = []
    other = Training.resumed(before, *to.train)
    other.expand(box)
    for _ in range(2):
        other.finish_epoch()
        reached.append(float(evaluate(other.net, *to.test)[1]))
    assert recovery["box"] == max(reached)
    assert recovery["box_now"] != reached[-1]  # trained in place: what evaluating too late would give


def test_the_rate_is_halved_after_epochs_without_improvement():
    to = task("digits", 2, 0.0, 0)
    training = Training(initial(start("digits", 2, "none"), [0]), *to.train, [0], batch=64, rate=1.0)
    protocol = replace(PROTOCOLS["digits"], patience=2)
    state = {"best": -1.0, "since": 0}
    rates = []
    for accuracy in (0.5, 0.5, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6):
        steer(training, protocol, state, accuracy)
        rates.append(training.rate)
    assert rates == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_half_of_the_images_are_mirrored():
    x = torch.arange(4000.0).view(1000, 1, 2, 2)
    turned = flipped(x, 3, 5)
    same, mirror = (turned == x).all((1, 2, 3)), (turned == x.flip(-1)).all((1, 2, 3))
    assert (same ^ mirror).all()
    assert 0.4 < mirror.double().mean() < 0.6
    assert not torch.equal(flipped(x, 3, 6), turned)


def test_noise_and_classes_change_the_task_and_nothing_else():
    clean, noisy = task("digits", 4, 0.0, 1), task("digits", 4, 0.5, 1)
    assert clean.held is clean.test
    assert int(clean.train[1].max()) == 3
    difference = (noisy.train[0] - clean.train[0]).double()
    assert float(difference.std()) == pytest.approx(0.5, rel=0.02)
    assert torch.equal(clean.train[1], noisy.train[1])


def test_an_outcome_is_the_mean_over_members():
    rows = [
        {"parameters": 10, "train_loss": [1.0, 3.0], "test": [0.1 * e, 0.2], "held": [-e, float(e == 3)]}
        for e in range(1, 5)
    ]
    found = outcome({"rows": rows, "steps": 100}, 4, 2)
    assert found["compute"] == pytest.approx(4 * 10 * 100 / 1e6)
    assert found["test"] == pytest.approx((0.4 + 0.2) / 2)
    assert found["best"] == pytest.approx((0.1 + 0.2) / 2)
    assert found["half"] == pytest.approx((0.2 + 0.2) / 2)
    assert found["first"] == pytest.approx((0.2 + 0.2) / 2)


def test_every_scale_is_planned():
    for scale, settings in (("smoke", 5), ("laptop", 5), ("cluster", 6)):
        packs = [pack for pack in plan(study, scale) if pack.trial == "runs"]
        assert len({pack["setting"] for pack in packs}) == settings
        assert all(pack.expected_s > 0 for pack in packs)
        assert {pack["setting"] for pack in packs} <= set(SETTINGS)
    cells = [cell for cell in TRIALS[0].grid("laptop") if cell["classes"] == 10]
    longer = [cell for cell in cells if "twin_longer" in arms(cell)]
    assert {(cell["setting"], cell["unit_norm"], cell["noise"]) for cell in longer} == {("ggn", "none", 0.0)}
    assert not planned(
        {"data": "digits", "setting": "always", "classes": 10, "unit_norm": "none", "noise": 0.0, "epochs": 60}
    )


def test_cifar10_is_read_and_grown_on(tmp_path, monkeypatch):
    """Files of the true format with few images, two epochs, a look after the first."""
    dice = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = dice.integers(0, 256, size=(24, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(24) % 10
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    monkeypatch.setenv("ASSAY_CIFAR10", str(tmp_path))
    quick = replace(PROTOCOLS["cifar10"], batch=54, warm_up=1, probe=8)
    monkeypatch.setitem(PROTOCOLS, "cifar10", quick)
    monkeypatch.setitem(SETTINGS, "kfac-1.007", replace(SETTINGS["kfac-1.007"], tau=1 + 1e-9, alpha=0.0))
    pack = next(
        pack
        for pack in plan(study, "cluster")
        if pack.trial == "runs" and pack["setting"] == "kfac-1.007" and pack["data"] == "cifar10"
    )
    (cell, *_) = pack.split()[0].cells
    short = replace(pack, cells=(replace(cell, factors=dict(cell.factors) | {"epochs": 2}),))
    growing.task.cache_clear()
    frames = study.run_pack(short)
    growing.task.cache_clear()
    final = frames["final"].set_index("arm")
    assert final.loc["small", "parameters"] == 9024
    assert final.loc["grown", "parameters"] > 9024
    assert final.loc["twin", "parameters"] == final.loc["grown", "parameters"]
    assert frames["events"]["event"].tolist() != ["none"]
    shape = start("cifar10", 10, "none")
    assert isinstance(shape, Architecture)
    assert shape.head_norm == 2


def test_without_a_folder_cifar10_says_what_to_set(monkeypatch):
    monkeypatch.delenv("ASSAY_CIFAR10", raising=False)
    growing.task.cache_clear()
    with pytest.raises(AssayError, match="set ASSAY_CIFAR10"):
        task("cifar10", 10, 0.0, 0)
