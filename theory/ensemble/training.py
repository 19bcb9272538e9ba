"""Training a stack on mini-batches, as many members at a time as the processor's cache holds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from theory.ensemble.losses import loss as loss_named
from theory.ensemble.mlp import StackedMLP
from theory.ensemble.seeding import batch_indices

CACHE_BYTES = 4 * 2**20
"""Working set, in bytes, at which a CPU trains a stack fastest: packs from half to twice as large lose a few percent.

Smaller packs pay for dispatch (a pack of one of width 64 takes four times as long per member), larger ones for memory
traffic (1.2 to 1.9 times from 10 MiB on); from width 512 at batch 256 on, one member at a time is best. Measured on an AMD
EPYC core with 1 MiB of L2 cache, widths 64 to 1024, both precisions.
"""


def members_per_chunk(
    sizes: Sequence[int], batch: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> int:
    """Return how many MLPs of layer sizes (d, n_1, ..., d_o) are best trained at a time, at least one.

    On a CPU as many as fit in `CACHE_BYTES`, counting weights, inputs, activations and signals; elsewhere all.
    """
    if torch.device(device).type != "cpu":
        return 2**31
    weights = sum(below * above for below, above in pairwise(sizes))
    activations = batch * (sizes[0] + 2 * sum(sizes[1:-1]) + 3 * sizes[-1])
    return max(1, CACHE_BYTES // (dtype.itemsize * (weights + activations)))


def chunks(members: int, size: int) -> Iterator[slice]:
    """Yield slices that cover 0 .. members-1 in order, none longer than `size` and of nearly equal length."""
    count = -(-members // size)
    bounds = [members * index // count for index in range(count + 1)] if count else []
    yield from map(slice, bounds[:-1], bounds[1:])


class Batches:
    """Mini-batches for K members; members with equal data seeds draw the same rows.

    x [N, d] and y [N, d_o] are the data of all members, or [K, N, d] and [K, N, d_o] those of each. `batches[t]` is the
    pair of step t: [K, B, d] and [K, B, d_o], or [B, d] and [B, d_o] when all members share data and data seed, in
    buffers that the next step overwrites. Order and errors are those of `batch_indices`; ValueError too if x and y do
    not pair up.
    """

    def __init__(self, x: Tensor, y: Tensor, batch: int, steps: int, data_seeds: Sequence[int]) -> None:
        self.batch, self.data_seeds = batch, tuple(data_seeds)
        _check_pairs(x, y, len(self.data_seeds))
        examples = x.shape[-2]
        orders = {seed: batch_indices(examples, batch, steps, seed) for seed in dict.fromkeys(self.data_seeds)}
        self.shared = len(orders) == 1 and x.dim() == 2
        seeds = self.data_seeds[:1] if self.shared else self.data_seeds
        rows = torch.stack([orders[seed] for seed in seeds], dim=1)  # [steps, K, B]
        if x.dim() == 3:  # all members' data as one long set
            rows = rows + examples * torch.arange(len(seeds)).view(-1, 1)
            x, y = x.flatten(0, 1), y.flatten(0, 1)
        self.x, self.y = x, y
        self._rows = rows.flatten(1).to(x.device)
        self._buffers: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        """K, the number of members."""
        return len(self.data_seeds)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rows = self._rows[step]
        if self._buffers is None:
            # Kept between steps: a fresh allocation of this size costs more in page faults than the gather itself.
            self._buffers = (
                self.x.new_empty(len(rows), *self.x.shape[1:]),
                self.y.new_empty(len(rows), *self.y.shape[1:]),
            )
        x, y = (torch.index_select(t, 0, rows, out=out) for t, out in zip((self.x, self.y), self._buffers, strict=True))
        return (x, y) if self.shared else (x.unflatten(0, (-1, self.batch)), y.unflatten(0, (-1, self.batch)))

    def members(self, rows: slice) -> Batches:
        """Return the batches of some of the members, drawn from the same data in the same order."""
        part = copy.copy(self)
        part.data_seeds, part._buffers = self.data_seeds[rows], None
        if not self.shared:
            part._rows = self._rows.unflatten(1, (-1, self.batch))[:, rows].flatten(1)
        return part


class FullBatch:
    """The whole data set at every step: gradient descent. Stands in for `Batches`.

    x is [N, d], shared by all members, or [K, N, d], and y is [N, d_o] or [K, N, d_o]. ValueError if they do not pair.
    """

    def __init__(self, x: Tensor, y: Tensor, steps: int, members: int) -> None:
        _check_pairs(x, y, members)
        self.x, self.y, self.steps, self.count, self.batch = x, y, steps, members, x.shape[-2]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    def members(self, rows: slice) -> FullBatch:
        """Return the data of some of the members."""
        x, y = (self.x, self.y) if self.x.dim() == 2 else (self.x[rows], self.y[rows])
        return FullBatch(x, y, self.steps, len(range(*rows.indices(self.count))))


def _check_pairs(x: Tensor, y: Tensor, members: int) -> None:
    if x.dim() not in (2, 3) or x.shape[:-1] != y.shape[:-1] or (x.dim() == 3 and len(x) != members):
        raise ValueError(
            f"x {list(x.shape)} and y {list(y.shape)} must pair up: [N, _] both, or [K, N, _] with K = {members}"
        )


def snapshots(mlp: StackedMLP, batches: Batches | FullBatch, loss: str, record: Sequence[int]) -> list[StackedMLP]:
    """Train every member on all batches in place and return copies of the stack as it was after each step in `record`.

    0 is the stack before training; `record` must increase. Members are trained a chunk at a time, as in `train`.
    Raises ValueError for steps that do not exist or are out of order, or batches of another number of members.
    """
    record = list(record)
    if batches.count != mlp.members:
        raise ValueError(f"batches are for {batches.count} members, the stack has {mlp.members}")
    if record != sorted(set(record)) or any(not 0 <= step <= len(batches) for step in record):
        raise ValueError(f"record = {record} must be increasing steps within 0..{len(batches)}")
    w = mlp.weights[0]
    kept = [mlp.copy() for _ in record]
    for rows in chunks(mlp.members, members_per_chunk(mlp.sizes, batches.batch, w.dtype, w.device)):
        part, data = mlp.narrow(rows.start, rows.stop - rows.start), batches.members(rows)
        places = {
            step: copy.narrow(rows.start, rows.stop - rows.start) for step, copy in zip(record, kept, strict=True)
        }
        for step in range(len(data) + 1):
            if step in places:
                there = places[step]
                for to, values in zip(
                    [*there.weights, *(there.biases or ())], [*part.weights, *(part.biases or ())], strict=True
                ):
                    to.copy_(values)
            if step < len(data):
                part.step(*data[step], loss)
    return kept


def train(mlp: StackedMLP, batches: Batches, loss: str, record: Sequence[int] = ()) -> Tensor:
    """Train every member on all batches in place and return batch losses [K, len(record)].

    The loss at step t in `record` (0-based) is that of batch t before its update. Members are trained a chunk at a
    time, each to its end, so that a chunk stays in the cache. A member that diverges has inf or nan. Raises ValueError
    for steps that do not exist, or batches of another number of members.
    """
    if len(batches.data_seeds) != mlp.members:
        raise ValueError(f"batches are for {len(batches.data_seeds)} members, the stack has {mlp.members}")
    if unknown := [step for step in record if not 0 <= step < len(batches)]:
        raise ValueError(f"record = {unknown} names steps outside 0..{len(batches) - 1}")
    w = mlp.weights[0]
    losses = w.new_empty(mlp.members, len(record))
    columns = {step: column for column, step in enumerate(record)}
    for rows in chunks(mlp.members, members_per_chunk(mlp.sizes, batches.batch, w.dtype, w.device)):
        part, data = mlp.narrow(rows.start, rows.stop - rows.start), batches.members(rows)
        for step in range(len(data)):
            x, y = data[step]
            f = part.step(x, y, loss)
            if step in columns:
                losses[rows, columns[step]] = loss_named(loss)(f, y)
    return losses
