"""Task diversity: networks trained on linear regressions from a pool of M tasks, between two Bayes predictors.

With M tasks the Bayes predictor of pretraining is dMMSE, the posterior mean over the pool; for tasks never seen it is
ridge regression, the posterior mean under w ~ N(0, I). As M grows the first tends to the second, so that the two can be
told apart up to some M only. M = 0 stands for a new task in every prompt, where both are ridge regression.

Sources: Raventós et al. 2023, arXiv:2306.15063; Garg et al. 2022, arXiv:2208.01066, whose standard configuration (without
noise, here without curriculum) is the layout "garg" at the largest scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assay import Factor, Pack, Table, Trial, scaled, seeds
from studies.icl.networks import BLOCK, CORE, TEST, Fresh, flops, new_networks, stack_bytes, stream_of

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from theory.icl.layouts import Architecture


@dataclass(frozen=True)
class Setting:
    """A regression problem, the network that learns it, and its training; `tests` prompts judge it."""

    T: int
    sigma2: float
    width: int
    layers: int
    heads: int
    batch: int
    rate: float
    tests: int


SETTINGS = {
    ("regression", 3): Setting(T=12, sigma2=0.25, width=24, layers=2, heads=2, batch=32, rate=1e-2, tests=4_000),
    ("garg", 8): Setting(T=16, sigma2=0.25, width=128, layers=8, heads=2, batch=256, rate=1e-3, tests=10_000),
    ("garg", 20): Setting(T=41, sigma2=0.0, width=256, layers=12, heads=8, batch=64, rate=1e-4, tests=10_000),
}
"""By layout and dimension d: a laptop's, that of Raventós et al., and that of Garg et al. (interleaved tokens both)."""
SAVED = 5000
"""Steps between two checkpoints, where training can be taken up again."""
ENDLESS = 0
"""M of a pool without end."""
ORIGINS = ("pool", "new")
"""Where the tasks of test prompts come from."""


def setting_of(cell: Mapping[str, Any]) -> Setting:
    """The setting of a cell."""
    return SETTINGS[cell["layout"], cell["dimension"]]


def architecture(layout: str, d: int) -> Architecture:
    """The network of a setting."""
    from theory.icl.layouts import Architecture

    of = SETTINGS[layout, d]
    return Architecture(layout, of.T, d, 1, of.width, of.layers, of.heads)


def measure_diversity(pack: Pack) -> pd.DataFrame:
    """Train on tasks from a pool, and measure how far predictions are from dMMSE and from ridge regression."""
    import torch

    from theory.icl import regression
    from theory.icl.pretraining import train_gpt
    from theory.icl.tasks import linear_prompts, pool_prompts, pool_tasks

    layout, d = pack["layout"], pack["dimension"]
    of, device = SETTINGS[layout, d], pack.device
    members = list(zip(pack.column("tasks"), pack.column("seed"), strict=True))
    pools = [None if M == ENDLESS else pool_tasks([seed], M, d, device=device) for M, seed in members]

    def draw(k: int, n: int, part: int, new: bool) -> tuple[torch.Tensor, torch.Tensor]:
        drawn, pool = [stream_of(members[k][1], part)], pools[k]
        if new or pool is None:
            return linear_prompts(drawn, n, of.T, d, 1.0, of.sigma2, device=device)[:2]
        return pool_prompts(pool, n, of.T, of.sigma2, drawn)[:2]

    def everyone(part: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = [draw(k, n, part, new=False) for k in range(len(members))]
        return torch.cat([X for X, _ in drawn]), torch.cat([y for _, y in drawn])

    model = new_networks(architecture(layout, d), pack)
    batches = Fresh(everyone, of.batch, torch.arange(len(members)))
    train_gpt(model, batches, pack["steps"], rates=of.rate, team=pack.team, save_every=SAVED)

    found = torch.empty(len(DIVERSITY_COLUMNS), len(pack), len(ORIGINS), of.T, dtype=torch.float64)
    for k in range(len(members)):
        for o, origin in enumerate(ORIGINS):
            X, y = draw(k, of.tests, TEST, new=origin == "new")
            ridge, pool = regression.ridge(X, y, of.sigma2), pools[k]
            dmmse = ridge if pool is None else regression.dmmse(pool, X, y, of.sigma2)
            net = model.narrow(k, 1).predict(X, y).double()
            zero = torch.zeros_like(y)
            pairs = ((net, dmmse), (net, ridge), (dmmse, ridge), (net, y), (zero, dmmse), (zero, ridge))
            found[:, k, o] = torch.stack([regression.difference(a, b, d)[0].cpu() for a, b in pairs])
    return pack.frame({"prompts": ORIGINS, "t": range(1, of.T + 1)}, **dict(zip(DIVERSITY_COLUMNS, found, strict=True)))


DIVERSITY_COLUMNS = ("to_dmmse", "to_ridge", "between", "error", "zero_to_dmmse", "zero_to_ridge")
"""Δ(net, dMMSE), Δ(net, ridge), Δ(dMMSE, ridge), Δ(net, y), Δ(0, dMMSE) and Δ(0, ridge)."""


def _kept(cell: Mapping[str, Any]) -> bool:
    """Garg et al. draw a new task for each prompt; every layout has its own dimensions."""
    known = (cell["layout"], cell["dimension"]) in SETTINGS
    return known and (cell["dimension"] != 20 or cell["tasks"] == ENDLESS)


def _seconds(cell: Mapping[str, Any]) -> float:
    of, d = setting_of(cell), cell["dimension"]
    S = of.T * (1 if cell["layout"] == "regression" else 2)
    judged = 2e-8 * len(ORIGINS) * of.tests * of.T * (d * d + cell["tasks"])
    return flops(of.width, of.layers, S, of.batch * S, cell["steps"]) / CORE + 6e-4 * cell["steps"] + judged


def _bytes(cell: Mapping[str, Any]) -> float:
    of, d = setting_of(cell), cell["dimension"]
    S = of.T * (1 if cell["layout"] == "regression" else 2)
    held = 8.0 * d * (3 * of.T * (of.tests + BLOCK * of.batch) + cell["tasks"])
    return stack_bytes(of.width, of.layers, S, of.batch, of.heads) + held


diversity = Trial(
    "diversity",
    (
        Factor("layout", scaled(("regression",), ("regression",), ("garg",))),
        Factor("dimension", scaled((3,), (3,), (8, 20))),
        Factor(
            "tasks",
            scaled((4, 64, ENDLESS), (4, 16, 64, 256, ENDLESS), (*(2**k for k in range(1, 21)), ENDLESS)),
            packed=True,
        ),
        Factor("steps", scaled((100,), (2000,), (500_000,))),
        seeds(2, 4, 3),
    ),
    (Table("diversity", {"prompts": str, "t": int} | dict.fromkeys(DIVERSITY_COLUMNS, float)),),
    measure_diversity,
    where=_kept,
    cost=_seconds,
    memory=_bytes,
    gpus={"cluster": 1.0},
    workers={"cluster": 4},  # half a million steps of the largest networks: batches are shared by four processes
)
