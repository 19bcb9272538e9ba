"""The throughput benchmark as a study: 2048 MLPs of width 64, 100 SGD steps on digits, as packs and one by one."""

from __future__ import annotations

import math
from functools import cache

from assay import Claim, Control, Equality, Factor, Paper, Study, Table, Trial

WIDTH, BATCH, STEPS, ETA = 64, 16, 100, 2.0
CELLS = 2048


@cache
def data():
    import torch

    from theory.datasets import digits

    held = digits()
    return torch.tensor(held.x, dtype=torch.float32), torch.tensor(held.y, dtype=torch.float32)


def train_packed(seeds, width=WIDTH, batch=BATCH, steps=STEPS):
    """Losses on the last batch, before its update; all members as one program."""
    from theory.abc.dynamics import training_loss
    from theory.abc.spec import neural_tangent

    x, y = data()
    found = training_loss(
        [neural_tangent(2)] * len(seeds), seeds, width, "tanh", "xent", ETA, x, y,
        batch=batch, steps=steps, data_seeds=seeds, record=(steps - 1,),
    )  # fmt: skip
    return found["loss"][:, 0]


def train_eager(seed, width=WIDTH, batch=BATCH, steps=STEPS):
    """The same network, initial weights, batches and updates in plain PyTorch: one member, autograd, torch.optim.SGD."""
    import torch
    from torch.nn.functional import cross_entropy

    from theory.ensemble import batch_indices, normal

    x, y = data()
    labels = y.argmax(1)
    sizes = [64, width, width, 10]
    layers = []
    for index in range(3):
        shape = (sizes[index + 1], sizes[index])
        layer = torch.nn.Linear(shape[1], shape[0], bias=False)
        scale = 1.0 if index == 0 else 1.0 / math.sqrt(width)  # NTP written with its multiplier inside W: rate η/n
        layer.weight.data = normal(shape, "init", seed, width, index + 1, shape, dtype=torch.float32) * scale
        layers += [layer, torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers[:-1])
    rates = [ETA, ETA / width, ETA / width]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(net.parameters(), rates, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=ETA)
    for rows in batch_indices(len(x), batch, steps, seed):
        optimizer.zero_grad()
        loss = cross_entropy(net(x[rows]), labels[rows])
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def measure(pack):
    return pack.frame(loss=train_packed(pack.column("seed")))


study = Study(
    name="throughput",
    title="Throughput",
    summary="Not a claim of any paper: how many small networks a second.",
    papers=(Paper("none", "none", ("none",), 2026),),
    version="1",
    trials=(
        Trial(
            "train",
            (Factor("seed", tuple(range(CELLS)), packed=True),),
            (Table("losses", {"loss": float}),),
            measure,
            cost=lambda cell: 0.003,
        ),
    ),
    claims=(
        Claim(
            "T-1", "training lowers the loss", "none", Equality(2.0),
            lambda tables: tables["losses"].rename(columns={"loss": "value"}),
            (Control("a", kind=Equality(0.01, prediction=9.0)), Control("b", kind=Equality(0.01, prediction=-9.0))),
        ),
    ),
)  # fmt: skip
