"""The loop of a growing run: what it is trained on, when it looks, what it takes, and how it goes on after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from theory.growth.decide import Candidate
    from theory.growth.expand import Expansion
    from theory.growth.network import Architecture, GrowingCNN
    from theory.growth.training import Training

    Labelled = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """How a run decides: kind of score, rule ("senn" or "secnn") with τ and α, and Adam's state after an expansion.

    A look takes one expansion at most: SENN's looks go on until none passes. SECNN's λ_n is 0: the paper gives none.
    With `restart` all moments and step counts start anew, instead of those of the new parameters only. A setting that is
    `dense` looks every 3 epochs and scores 96 images on digits; the others, every 6 epochs on 32 images, cost less.
    """

    score: str
    rule: str
    tau: float
    alpha: float = 0.0
    restart: bool = False
    dense: bool = False


SETTINGS = {
    "ggn": Setting("ggn", "senn", 1.015, 0.01),
    "restart": Setting("ggn", "senn", 1.015, 0.01, restart=True),
    "dense": Setting("ggn", "senn", 1.015, 0.01, dense=True),
    "always": Setting("ggn", "senn", 1 + 1e-9, 0.0),
    "secnn": Setting("emp_diag", "secnn", 2.0),
    "kfac-1.007": Setting("kfac", "senn", 1.007, 0.01),
}


@dataclass(frozen=True)
class Protocol:
    """What is the same in all runs on a data set.

    epoch_steps                 steps that count as an epoch, so that tasks of fewer images are trained as long; 0: one pass
    warm_up, every, cool_down   epochs at which a run looks (see `theory.growth.decide.due`)
    probe                       training images that scores are computed on
    window                      epochs after an expansion within which accuracy is expected back
    patience                    epochs without better held-out accuracy until the rate is halved; 0 for a constant rate
    save                        epochs between two saved states
    """

    image: tuple[int, int, int]
    width: int
    head_norm: int
    batch: int
    epoch_steps: int
    rate: float
    warm_up: int
    every: int
    cool_down: int
    probe: int
    window: int
    capacity: int
    patience: int
    flips: bool
    save: int
    channels: int = 2
    damping: float = 1e-3
    l1: float = 1e-5


PROTOCOLS = {
    "digits": Protocol(
        image=(1, 8, 8), width=2, head_norm=0, batch=128, epoch_steps=9, rate=5e-3, warm_up=7, every=6, cool_down=0,
        probe=32, window=6, capacity=5, patience=0, flips=False, save=5,
    ),
    "cifar10": Protocol(
        image=(3, 32, 32), width=16, head_norm=2, batch=512, epoch_steps=0, rate=2e-3, warm_up=10, every=1, cool_down=10,
        probe=1024, window=10, capacity=10, patience=15, flips=True, save=10,
    ),
}  # fmt: skip
BLOCKS, HELD = 3, 5000
"""Blocks of a network, and training images of CIFAR-10 held out to steer the learning rate."""


@dataclass(frozen=True)
class Task:
    """Images and classes to train on, to steer the rate by, and to be judged on; without held-out ones the last two are the same."""

    train: Labelled
    held: Labelled
    test: Labelled


@lru_cache(maxsize=4)
def task(data: str, classes: int, noise: float, seed: int, device: str = "cpu") -> Task:
    """The images of the first `classes` classes, with Gaussian noise of standard deviation `noise` on all pixels."""
    import torch

    from theory.ensemble import normal, stream

    if data == "digits":
        from studies.growth.identities_nets import digits

        parts = list(digits(seed))
    else:
        from assay import data_folder
        from theory.datasets import cifar10

        folder = data_folder("ASSAY_CIFAR10", "CIFAR-10")
        parts = []
        for split in ("train", "test"):
            read = cifar10(folder, split)
            parts.append((torch.tensor(read.images / 127.5 - 1, dtype=torch.float32), torch.tensor(read.labels)))
        (x, y), last = parts
        order = torch.randperm(len(x), generator=stream("growth", "held", seed))
        held = min(HELD, len(x) // 10)
        parts = [(x[order[held:]], y[order[held:]]), last, (x[order[:held]], y[order[:held]])]
    kept = []
    for index, (x, y) in enumerate(parts):
        x, y = x[y < classes], y[y < classes]
        if noise:
            x = x + noise * normal(x.shape, "growth", "noise", seed, index, dtype=x.dtype)
        kept.append((x.to(device), y.to(device)))
    return Task(kept[0], kept[-1], kept[1])


def start(data: str, classes: int, unit_norm: str) -> Architecture:
    """The architecture that runs start from."""
    from theory.growth.network import Architecture

    p = PROTOCOLS[data]
    return Architecture(p.image, classes, (p.width,) * BLOCKS, unit_norm=unit_norm, head_norm=p.head_norm)


# --- Growing ----------------------------------------------------------------------------------------------------------


def expanded(net: GrowingCNN, candidate: Candidate, seed: int, x: torch.Tensor, recipe: str = "exact") -> Expansion:
    """The network with a candidate in it; x are the images that calibrated norms are made the identity on."""
    from theory.growth.expand import add_channels, insert_identity

    if candidate.kind == "identity":
        return insert_identity(net, candidate.block, recipe, data=x)
    return add_channels(net, candidate.block, candidate.channels, recipe, seeds=[seed])


def protocol_of(data: str, setting: Setting) -> Protocol:
    """The protocol of a data set, as a setting wants it."""
    p = PROTOCOLS[data]
    return replace(p, every=p.every // 2, probe=3 * p.probe) if setting.dense else p


@lru_cache(maxsize=1)
def warm() -> None:
    """Score once for nothing: what a process does at its first score only is no part of the time of scoring."""
    from theory.growth.network import initial

    look(initial(start("digits", 2, "none"), [0]), task("digits", 2, 0.0, 0), SETTINGS["ggn"], PROTOCOLS["digits"], 0)


def room(net: GrowingCNN, protocol: Protocol) -> list[Candidate]:
    """The candidates that a network has room for."""
    from theory.growth.decide import eligible

    return eligible(net.architecture, channels=(protocol.channels,), capacity=protocol.capacity)


def look(
    net: GrowingCNN, to: Task, setting: Setting, protocol: Protocol, seed: int
) -> tuple[Candidate | None, dict[str, float]]:
    """Score all candidates on the probe images: which one to take, and the scores η."""
    from torch.nn import functional

    from theory.growth.candidates import score_candidates
    from theory.growth.decide import decide_secnn, decide_senn

    candidates = room(net, protocol)
    x, y = to.train[0][: protocol.probe], to.train[1][: protocol.probe]
    nets = [expanded(net, candidate, seed, x).net for candidate in candidates]
    targets = functional.one_hot(y, net.architecture.classes).double()
    damping = 0.0 if setting.score == "emp_diag" else protocol.damping
    found = score_candidates(net, nets, x, targets, kind=setting.score, damping=damping)
    current = float(found.current[0])
    scores = [float(score[0]) for score in found.expanded]
    if setting.rule == "secnn":
        taken = decide_secnn(current, candidates, scores, tau=setting.tau)
    else:
        taken = decide_senn(current, candidates, scores, tau=setting.tau, alpha=setting.alpha)
    best = {
        kind: max((s for c, s in zip(candidates, scores, strict=True) if c.kind == kind), default=0.0)
        for kind in ("identity", "channels")
    }
    ratio = max(scores) / current if current > 0 else 0.0
    return taken, {"eta": current, "eta_layer": best["identity"], "eta_channel": best["channels"], "ratio": ratio}


Act = Callable[["Training", dict[str, Any], Callable[[], None]], None]
"""What is done between two epochs: given the training, the state of the course, and what saves it."""


def course(
    to: Task,
    protocol: Protocol,
    epochs: int,
    begin: Callable[[], Training],
    act: Act | None,
    state: dict[str, Any] | None,
    keep: Callable[[Mapping[str, Any]], None],
) -> tuple[Training, dict[str, Any]]:
    """Train for `epochs` epochs in all, from `begin` or from a saved state, and `act` after each but the last.

    The state of a course is numbers, texts and tensors: "rows" of each epoch, "events" and "recoveries" of `act`, seconds.
    It is saved between training and `act`, so that whoever takes it up acts first. Saved states are there to go on from and
    do not outlast the pack: of the nets before expansions, rows are kept (size, accuracy, score), not parameters.
    """
    from theory.growth.network import parameter_count
    from theory.growth.training import Training, evaluate

    x, y = to.train
    if state is None:
        training = begin()
        state = {"rows": [], "events": [], "recoveries": [], "train_s": 0.0, "score_s": 0.0, "best": -1.0, "since": 0}
    else:
        state = dict(state)
        training = Training.resumed(state.pop("training"), x, y)
        state |= {name: list(state[name]) for name in ("rows", "events", "recoveries")}

    def save() -> None:
        keep({**state, "training": training.state()})

    if state["rows"] and act and training.epoch < epochs:
        act(training, state, save)
    while training.epoch < epochs:
        began = time.perf_counter()
        if protocol.flips:
            training.x = flipped(x, training.data_seeds[0], training.epoch)
        losses = training.finish_epoch().double().tolist()
        state["train_s"] += time.perf_counter() - began
        test = evaluate(training.net, *to.test)[1]
        held = test if to.held is to.test else evaluate(training.net, *to.held)[1]
        architecture = training.net.architecture
        row = {"epoch": training.epoch, "parameters": parameter_count(architecture), "train_loss": losses}
        state["rows"].append(row | {"test": test.tolist(), "held": held.tolist()})
        steer(training, protocol, state, float(held.mean()))
        if training.epoch % protocol.save == 0:
            save()
        if act and training.epoch < epochs:
            act(training, state, save)
    training.x = x
    return training, state


def steer(training: Training, protocol: Protocol, state: dict[str, Any], accuracy: float) -> None:
    """Halve the rate after `patience` epochs without a better held-out accuracy."""
    if accuracy > state["best"]:
        state["best"], state["since"] = accuracy, 0
        return
    state["since"] += 1
    if protocol.patience and state["since"] >= protocol.patience:
        training.rate, state["since"] = training.rate / 2, 0


def flipped(x: torch.Tensor, data_seed: int, epoch: int) -> torch.Tensor:
    """Images [N, c, h, w], half of them mirrored left to right: which ones depends on the seed and the epoch."""
    import torch

    from theory.ensemble import stream

    mirrored = torch.rand(len(x), generator=stream("growth", "flip", data_seed, epoch)) < 0.5
    return torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)


def grower(to: Task, setting: Setting, protocol: Protocol, seed: int, box: bool) -> Act:
    """What a growing run does between two epochs: look where that is due, and take what the rule says.

    With `box` every expansion is tried beside a box kernel in its place, and beside no expansion.
    """
    from theory.growth.decide import Candidate, due
    from theory.growth.expand import change
    from theory.growth.network import parameter_count
    from theory.growth.training import evaluate

    if not to.train[0].is_cuda:
        warm()

    def act(training: Training, state: dict[str, Any], save: Callable[[], None]) -> None:
        epoch, net = training.epoch, training.net
        last = max((event["epoch"] for event in state["events"] if event["event"] != "none"), default=None)
        cadence = {"warm_up": protocol.warm_up, "every": protocol.every, "cool_down": protocol.cool_down}
        if not due(epoch, last=last, **cadence) or not room(net, protocol):
            return
        began = time.perf_counter()
        taken, scores = look(net, to, setting, protocol, seed)
        seconds = time.perf_counter() - began
        event: dict[str, Any] = {
            "epoch": epoch,
            "event": "none",
            "block": 0,
            "channels": 0,
            "df_eval": 0.0,
            "df_train": 0.0,
        }
        if taken is not None:
            save()  # before this look is counted: whoever takes the run up here looks again
            recovery = {"epoch": epoch, "before": state["rows"][-1]["test"][0]}
            recovery |= dict.fromkeys(("box", "box_now", "left"), 0.0)
            x = to.train[0][: min(protocol.probe, 128)]
            grown = expanded(net, taken, seed, x)
            event |= {"event": taken.kind, "block": taken.block, "channels": taken.channels}
            event |= {
                f"df_{mode}": float(change(net, grown.net, x, train=mode == "train")) for mode in ("eval", "train")
            }
            if box:
                identity = Candidate("identity", taken.block, 0, 0)
                broken = expanded(net, identity, seed, x, "box")
                recovery["box_now"] = float(evaluate(broken.net, *to.test)[1])  # training changes it in place
                recovery["box"] = _best_after(training, broken, to, protocol.window)
                recovery["left"] = _best_after(training, None, to, protocol.window)
            adopt(training, grown, to, restart=setting.restart)
            state["recoveries"].append(recovery)
        state["score_s"] += seconds
        architecture = training.net.architecture
        event |= {
            "parameters": parameter_count(architecture),
            "widths": architecture.widths,
            "units": architecture.units,
        }
        state["events"].append(event | scores)

    return act


def adopt(training: Training, expansion: Expansion, to: Task, *, restart: bool = False) -> None:
    """Go on with an expanded network; with `restart` Adam starts anew, with no step taken by any parameter."""
    import torch

    training.expand(expansion)
    if not restart:
        return
    from theory.growth.training import Training

    state = training.state()
    for moments in ("first", "second"):
        state[moments] = {name: torch.zeros_like(t) for name, t in state[moments].items()}
    state["ages"] = {name: torch.full_like(age, len(state["born"]) - 1) for name, age in state["ages"].items()}
    vars(training).update(vars(Training.resumed(state, *to.train)))


def _best_after(training: Training, expansion: Expansion | None, to: Task, epochs: int) -> float:
    """Best test accuracy within some epochs after an expansion, or without one, on a course of its own."""
    from theory.growth.training import Training, evaluate

    other = Training.resumed(training.state(), *to.train)
    if expansion is not None:
        other.expand(expansion)
    best = 0.0
    for _ in range(epochs):
        other.finish_epoch()
        best = max(best, float(evaluate(other.net, *to.test)[1]))
    return best


def elsewhere(to: Task, protocol: Protocol, events: list[dict[str, Any]], seed: int, by: str) -> Act:
    """Growth at the epochs of another run's `events`, but at random locations and of random kinds.

    by "count": as many expansions. by "size": as many as fit below the parameters that the other run has by then.
    """
    import torch

    from theory.ensemble import stream
    from theory.growth.network import parameter_count

    def act(training: Training, state: dict[str, Any], save: Callable[[], None]) -> None:
        for event in events:
            if event["event"] == "none" or event["epoch"] != training.epoch:
                continue
            save()
            generator = stream("growth", "elsewhere", by, seed, training.epoch)
            while candidates := [
                candidate
                for candidate in room(training.net, protocol)
                if by == "count" or parameter_count(training.net.architecture) + candidate.added <= event["parameters"]
            ]:
                drawn = candidates[int(torch.randint(len(candidates), (), generator=generator))]
                adopt(training, expanded(training.net, drawn, seed, to.train[0][: protocol.probe]), to)
                if by == "count":
                    break

    return act
