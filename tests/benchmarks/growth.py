"""Scoring the candidates of one growth decision together against scoring them one at a time.

Everybody works in float64 on one thread and finds the same scores; making the expanded networks counts for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theory.curvature import ModuleCurvature
from theory.datasets import digit_images
from theory.growth.candidates import score_candidates
from theory.growth.expand import add_channels, insert_identity
from theory.growth.network import EPSILON, SLOPE, Architecture, GrowingCNN, initial, parameter_count
from theory.growth.scores import curvature_score, expansion_score

PROBES, DAMPING, ROUNDS = 96, 1e-3, 5
NETS = (((2, 2, 2), (0, 0, 0)), ((4, 2, 4), (2, 0, 1)), ((6, 4, 4), (3, 1, 1)))
PROPOSALS = (1, 4)  # of new channels in a block: one, as the SECNN paper, or several random ones, as SENN
WAYS = ("together", "expanded networks, own score", "expanded modules, general curvature")


class Eager(nn.Module):
    """A member of a growing network in inference mode as a plain module."""

    def __init__(self, net: GrowingCNN) -> None:
        super().__init__()
        self.a = net.architecture
        self.names = {name: name.replace(".", "_") for name in net.parameters}
        for name, values in net.parameters.items():
            self.register_parameter(self.names[name], nn.Parameter(values[0].clone()))
        self.fixed = {name: values[0] for name, values in net.buffers.items()}

    def p(self, name: str) -> Tensor:
        return getattr(self, self.names[name])

    def forward(self, x: Tensor) -> Tensor:
        z = skip = x
        for block in range(1, self.a.blocks + 1):
            at = f"block{block}"
            z = F.conv2d(z, self.p(f"{at}.conv.weight"), self.p(f"{at}.conv.bias"), padding=1)
            mean, variance = (self.fixed[f"{at}.norm.{part}"].view(-1, 1, 1) for part in ("mean", "variance"))
            z = (z - mean) / (variance + EPSILON).sqrt() * self.p(f"{at}.norm.scale").view(-1, 1, 1)
            z = F.leaky_relu(z + self.p(f"{at}.norm.shift").view(-1, 1, 1), SLOPE)
            for unit in range(1, self.a.units[block - 1] + 1):
                z = F.conv2d(z, self.p(f"{at}.unit{unit}.conv.weight"), padding=1)
                z = F.relu(z) - self.p(f"{at}.unit{unit}.slope").view(-1, 1, 1) * F.relu(-z)
            z = F.max_pool2d(z, 2)
            skip = F.max_pool2d(z, 2 ** (self.a.blocks - 1)) if block == 1 else skip
        z = F.conv2d(torch.cat([skip, z], 1), self.p("mixed.weight"), self.p("mixed.bias"))
        z = F.leaky_relu(z, SLOPE).flatten(1)
        z = F.leaky_relu(F.linear(z, self.p("hidden.weight"), self.p("hidden.bias")), SLOPE)
        return F.linear(z, self.p("readout.weight"), self.p("readout.bias"))


def expanded(net: GrowingCNN, proposals: int) -> list[GrowingCNN]:
    """The candidates of a decision: in each block an identity unit, and some proposals of two channels more."""
    blocks = range(1, net.architecture.blocks + 1)
    wider = [add_channels(net, block, 2, seeds=[seed]).net for block in blocks for seed in range(proposals)]
    return [insert_identity(net, block).net for block in blocks] + wider


def best(calls: Sequence[Callable[[], Tensor]]) -> list[float]:
    """Seconds of each call: the shortest of several, taken in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for round_ in range(ROUNDS + 1):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if round_:
                taken.append(time.perf_counter() - started)
    return [min(taken) for taken in times]


def measure(widths: tuple[int, ...], units: tuple[int, ...], proposals: int) -> tuple[int, list[float]]:
    """Parameters of a network, and the seconds of each way to score its candidates."""
    held = digit_images()
    x = torch.tensor(held.images[:PROBES] / 8 - 1, dtype=torch.float64)
    y = F.one_hot(torch.tensor(held.labels[:PROBES]), 10).double()
    net = initial(Architecture((1, 8, 8), 10, widths, units), [0], dtype=torch.float64)

    def together() -> Tensor:
        found = score_candidates(net, expanded(net, proposals), x, y, damping=DAMPING)
        return torch.cat([found.current[None], found.expanded])[:, 0]

    def own() -> Tensor:
        each = [expansion_score("ggn", *one.taps(x), y, damping=DAMPING) for one in [net, *expanded(net, proposals)]]
        return torch.cat(each)

    def general() -> Tensor:
        modules = [Eager(one) for one in [net, *expanded(net, proposals)]]
        each = [curvature_score(ModuleCurvature(m, x, y, "xent"), y, "xent", damping=DAMPING) for m in modules]
        return torch.cat(each)

    for other in (own(), general()):
        torch.testing.assert_close(other, together(), rtol=1e-8, atol=0.0)
    return parameter_count(net.architecture), best([together, own, general])


def run() -> list[str]:
    """Measure; returns Markdown lines."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [(proposals, *measure(*net, proposals)) for proposals in PROPOSALS for net in NETS]
    finally:
        torch.set_num_threads(threads)
    lines = [
        "### Candidates of a growth decision, one thread",
        "",
        f"The network and its candidates, in each of three blocks an identity unit and one or four proposals of two channels; score of the "
        f"Gauss-Newton matrix, damping {DAMPING:g}, {PROBES} digits, 10 classes; "
        f"scores agree to 1e-8. Milliseconds per decision, shortest of {ROUNDS}, taken in turns; in brackets: by how much scoring "
        "together is faster.",
        "",
        "| candidates | parameters | " + " | ".join(WAYS) + " |",
        "| ---: | ---: |" + " ---: |" * len(WAYS),
    ]
    for proposals, count, (ours, *others) in found:
        lines.append(
            f"| {3 + 3 * proposals} | {count} | {1e3 * ours:.0f} | "
            + " | ".join(f"{1e3 * s:.0f} ({s / ours:.1f}×)" for s in others)
            + " |"
        )
    return lines
