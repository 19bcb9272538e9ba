"""Training MLPs under abc-parametrizations, and measuring how far each layer moves.

Members differ in their spec, seed and learning rate; all share L, the width n and the data shapes, so that they are one
stack (`theory.ensemble.StackedMLP`). Batch losses are means over the batch and sums over outputs; inputs are used as
given (the theory has no 1/√d, so scale them to |ξ|² ≈ 1). A member that diverges has inf or nan in its results.

Inputs that differ between members may have a leading dimension K everywhere: x_batches [T, B, d] or [K, T, B, d],
probes [P, d] or [K, P, d], and alike for targets.

Source: Yang & Hu, Feature Learning in Infinite-Width Neural Networks (Tensor Programs IV), arXiv:2011.14522.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from theory.abc.coordinates import MEASURED, coordinate_check, memory_bytes
from theory.abc.networks import of_members, stack, stacks
from theory.abc.spec import AbcSpec
from theory.ensemble import Batches, StackedMLP, empirical_ntk, train
from theory.ensemble import loss as loss_named

__all__ = [
    "MEASURED",
    "StableRate",
    "coordinate_check",
    "empirical_ntk",
    "max_stable_learning_rate",
    "memory_bytes",
    "stack",
    "training_loss",
    "trajectory",
]


def trajectory(
    specs: Sequence[AbcSpec],
    seeds: Sequence[int],
    n: int,
    activation: str,
    loss: str,
    eta: float | Sequence[float],
    x_batches: Tensor,
    y_batches: Tensor,
    probes: Tensor,
    *,
    steps: int | None = None,
    trainable: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return f_t on the probes for t = 0..steps, float64 [K, steps+1, P, d_o]; all batches by default.

    Raises ValueError for more steps than batches, and as `stack` does.
    """
    given = x_batches.shape[-3]
    steps = given if steps is None else steps
    if not 0 <= steps <= given:
        raise ValueError(f"steps = {steps} must lie between 0 and {given}, the number of batches given")
    x_batches, y_batches, probes = (t.to(device, dtype) for t in (x_batches, y_batches, probes))
    d_o = y_batches.shape[-1]
    found = np.empty((len(specs), steps + 1, probes.shape[-2], d_o))
    for members, mlp in stacks(
        specs, seeds, n, activation, eta,
        d=x_batches.shape[-1], d_o=d_o, rows=max(x_batches.shape[-2], probes.shape[-2]),
        trainable=trainable, dtype=dtype, device=device,
    ):  # fmt: skip
        x_part, y_part = of_members(x_batches, members, 3), of_members(y_batches, members, 3)
        for t in range(steps + 1):
            if t > 0:
                mlp.step(x_part[..., t - 1, :, :], y_part[..., t - 1, :, :], loss)
            found[members, t] = mlp.predict(of_members(probes, members, 2)).double().cpu().numpy()
    return found


class StableRate(NamedTuple):
    """Result of `max_stable_learning_rate` for K members.

    eta [K] is the largest stable learning rate, or nan where the range searched does not contain it. where [K] says
    which: "inside" the range, "below" it (unstable at its low end) or "above" it (stable at its high end).
    """

    eta: np.ndarray
    where: np.ndarray


def max_stable_learning_rate(
    specs: Sequence[AbcSpec],
    seeds: Sequence[int],
    n: int,
    activation: str,
    loss: str,
    x_batches: Tensor,
    y_batches: Tensor,
    *,
    steps: int = 12,
    bisections: int = 7,
    low: float = -12.0,
    high: float = 12.0,
    trainable: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> StableRate:
    """Bisect log2 η in [low, high] for the largest learning rate with which training does not blow up.

    Stable means: for `steps` steps every batch loss stays below 3 max(L_0, L_const), also that of the last batch after
    the last step, with L_0 the first loss and L_const the mean loss of f ≡ 0. (A final loss that is finite and below
    the first is no criterion: relu networks that died satisfy it.) The result is the middle, in log2, of the last
    bracket, which is (high - low) / 2^bisections wide. Raises ValueError for the loss "linear", which has no lower
    bound, for too few batches, for low >= high, and as `stack` does.
    """
    if loss == "linear":
        raise ValueError(
            "loss 'linear' has no lower bound, so no learning rate is stable by its size; use 'mse' or 'xent'"
        )
    if not low < high:
        raise ValueError(f"low = {low} must be less than high = {high} (both are log2 of the learning rate)")
    given = x_batches.shape[-3]
    if not 1 <= steps <= given:
        raise ValueError(f"steps = {steps} must lie between 1 and {given}, the number of batches given")
    x_batches, y_batches = x_batches.to(device, dtype), y_batches.to(device, dtype)
    eta, where = np.full(len(specs), np.nan), np.full(len(specs), "inside", dtype=object)
    for members, mlp in stacks(
        specs, seeds, n, activation, 1.0,
        d=x_batches.shape[-1], d_o=y_batches.shape[-1], rows=x_batches.shape[-2],
        trainable=trainable, dtype=dtype, device=device,
    ):  # fmt: skip
        x_part, y_part = of_members(x_batches, members, 3), of_members(y_batches, members, 3)
        data = [(x_part[..., t, :, :], y_part[..., t, :, :]) for t in range(steps)]
        stable = _StabilityTest(mlp, data, loss)
        lo, hi = (torch.full_like(stable.limit, end) for end in (low, high))
        below, above = ~stable(lo), stable(hi)
        for _ in range(bisections):
            middle = (lo + hi) / 2
            ok = stable(middle)
            lo, hi = torch.where(ok, middle, lo), torch.where(ok, hi, middle)
        eta[members] = torch.exp2((lo + hi) / 2).double().cpu().numpy()
        where[members] = np.select([below.cpu().numpy(), above.cpu().numpy()], ["below", "above"], "inside")
        del mlp, stable  # before the next part is built beside them
    eta[where != "inside"] = np.nan
    return StableRate(eta, where)


class _StabilityTest:
    """Says for each member whether training from its initial weights with a given log2 η stays bounded."""

    def __init__(self, mlp: StackedMLP, data: Sequence[tuple[Tensor, Tensor]], loss: str) -> None:
        self.mlp, self.data, self.loss = mlp, data, loss
        self.initial, self.unit_rates = [w.clone() for w in mlp.weights], mlp.rates
        first = self._batch_loss(mlp.forward(data[0][0]), data[0][1])
        constant = torch.stack([self._batch_loss(torch.zeros_like(y), y) for _, y in data]).mean(0)
        self.limit = 3 * torch.maximum(first, constant)

    def __call__(self, log_eta: Tensor) -> Tensor:
        mlp = self.mlp
        for w, w_0 in zip(mlp.weights, self.initial, strict=True):
            w.copy_(w_0)
        mlp.set_rates(self.unit_rates * torch.exp2(log_eta))
        stable = torch.ones_like(log_eta, dtype=torch.bool)
        for x, y in self.data:
            stable &= self._batch_loss(mlp.step(x, y, self.loss), y) < self.limit  # false for nan
        x, y = self.data[-1]
        return stable & (self._batch_loss(mlp.forward(x), y) < self.limit)

    def _batch_loss(self, f: Tensor, y: Tensor) -> Tensor:
        return loss_named(self.loss)(f, y)


def training_loss(
    specs: Sequence[AbcSpec],
    seeds: Sequence[int],
    n: int,
    activation: str,
    loss: str,
    eta: float | Sequence[float],
    x: Tensor,
    y: Tensor,
    *,
    batch: int,
    steps: int,
    data_seeds: Sequence[int],
    record: Sequence[int] = (),
    evaluate: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    trainable: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Train on mini-batches of (x, y) and return float64 arrays: the loss curve and the final losses and accuracies.

    "loss" [K, len(record)] is the batch loss at each 0-based step in `record`, before its update. For each
    name -> (inputs [N, d], targets [N, d_o]) in `evaluate`, "<name>_loss" [K] is the mean loss after training and
    "<name>_accuracy" [K] the share of examples whose largest output is at the largest target; nan where an output is
    not finite. Batches follow `theory.ensemble.batch_indices` of each member's data seed. Raises ValueError for another
    number of data seeds than of specs, and as `theory.ensemble.Batches`, `theory.ensemble.train` and `stack` do.
    """
    if len(data_seeds) != len(specs):
        raise ValueError(f"{len(data_seeds)} data seeds for {len(specs)} specs: give one per member")
    x, y = x.to(device, dtype), y.to(device, dtype)
    sets = {name: (u.to(device, dtype), v.to(device, dtype)) for name, (u, v) in (evaluate or {}).items()}
    found = {f"{name}_{what}": np.empty((len(specs),)) for name in sets for what in ("loss", "accuracy")}
    curve = np.empty((len(specs), len(record)))
    for members, mlp in stacks(
        specs, seeds, n, activation, eta,
        d=x.shape[-1], d_o=y.shape[-1], rows=batch, trainable=trainable, dtype=dtype, device=device,
    ):  # fmt: skip
        batches = Batches(x, y, batch, steps, data_seeds[members])
        curve[members] = train(mlp, batches, loss, record).double().cpu().numpy()
        for name, (inputs, targets) in sets.items():
            f = mlp.predict(inputs)
            hits = (f.argmax(-1) == targets.argmax(-1)).double().mean(-1)
            finite = f.isfinite().flatten(1).all(1)
            found[f"{name}_loss"][members] = loss_named(loss)(f, targets).double().cpu().numpy()
            found[f"{name}_accuracy"][members] = torch.where(finite, hits, math.nan).cpu().numpy()
    return {"loss": curve, **found}
