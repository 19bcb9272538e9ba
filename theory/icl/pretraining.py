"""Pretraining of stacked GPTs: the sources of batches, and the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from theory.ensemble import StackedAdamW, chunks, schedule, stream
from theory.icl.gpt import StackedGPT


class Team(Protocol):
    """The processes that train together, this one number `rank` of `size`, and where they keep what they need to go on.

    With more than one, `torch.distributed` must be set up.
    """

    rank: int
    size: int

    def load(self) -> dict[str, Any] | None:
        """Return what was last saved, or None."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep tensors and numbers; every process calls it equally often."""


Batch = tuple[Tensor, Tensor]
"""Covariates and responses: [K, B, T] each, or [B, T] if all members see the same; real covariates [..., d_x]."""

_POOL_BLOCK = 64  # steps whose indices are drawn at once: naming a stream costs more than drawing from it


@dataclass(frozen=True)
class Training:
    """What was seen while training; the stack itself holds the final parameters.

    record, losses      steps, and the losses there on the batch of that step before its update, [len(record), K]
    checks, validation  steps after which the validation loss was taken, and its values, [len(checks), K]
    best_step, best     per member the check with the smallest validation loss, [K] (0: none), and its parameters, [K, P]

    Numbers are float64 on the CPU, `best` is like the stack's parameters, None without validation.
    """

    record: tuple[int, ...]
    losses: Tensor
    checks: tuple[int, ...]
    validation: Tensor
    best_step: Tensor
    best: Tensor | None


class PoolBatches:
    """Batches drawn with replacement from N_p stored sequences: the pretraining set of finite size.

    Sequences of all pools lie in one tensor, covariates [N, T] and responses [N, T]; the pool of member k is
    `sizes[k]` of them from `offsets[k]` on (0 by default: pools are nested). Members with equal data seeds, sizes and
    offsets see the same batches. Called with a step; returns [K, B, T]. Raises ValueError for pools that do not lie
    inside the tensor or lists of unequal length.
    """

    def __init__(
        self,
        covariates: Tensor,
        responses: Tensor,
        batch: int,
        sizes: Sequence[int],
        data_seeds: Sequence[int],
        offsets: Sequence[int] | None = None,
    ) -> None:
        offsets = [0] * len(sizes) if offsets is None else offsets
        if not len(sizes) == len(data_seeds) == len(offsets) > 0:
            raise ValueError(
                f"one size, data seed and offset per member, got {len(sizes)}, {len(data_seeds)} and {len(offsets)}"
            )
        if batch < 1:
            raise ValueError(f"batch = {batch} must be at least 1")
        N = len(responses)
        for size, offset in zip(sizes, offsets, strict=True):
            if size < 1 or offset < 0 or offset + size > N:
                raise ValueError(f"a pool of {size} sequences from {offset} on does not lie within the {N} stored")
        self.covariates, self.responses, self.batch = covariates, responses, batch
        self.sizes, self.data_seeds, self.offsets = tuple(sizes), tuple(data_seeds), tuple(offsets)
        self._block, self._rows = -1, torch.empty(0)

    def rows(self, step: int) -> Tensor:
        """Return which sequences the step draws, [K, B]."""
        block, place = divmod(step, _POOL_BLOCK)
        if block != self._block:
            draws = [
                offset + torch.randint(size, (_POOL_BLOCK, self.batch), generator=stream("pool", seed, size, block))
                for size, seed, offset in zip(self.sizes, self.data_seeds, self.offsets, strict=True)
            ]
            self._block, self._rows = block, torch.stack(draws, 1).to(self.responses.device)
        return self._rows[place]

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step, [K, B, T]."""
        rows = self.rows(step)
        return self.covariates[rows], self.responses[rows]


def train_gpt(
    model: StackedGPT,
    batches: Callable[[int], Batch],
    steps: int,
    *,
    rates: Tensor | float,
    weight_decay: Tensor | float = 0.0,
    clip: Tensor | float = 1.0,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-8,
    warmup: float = 0.05,
    record: Sequence[int] = (),
    validate: Callable[[StackedGPT], Tensor] | None = None,
    every: int = 0,
    chunk: int | None = None,
    team: Team | None = None,
    save_every: int = 0,
) -> Training:
    """Train every member in place by AdamW with warm-up and cosine decay, and return what was seen on the way.

    `batches(step)` is called once for every step 0 .. steps-1, in order. `validate` is called after every `every` steps
    and after the last with the stack as it then is, and returns a loss per member, [K]; the best parameters of each
    member are kept (early stopping). `chunk` is how many members to differentiate at a time, by default as many as
    `members_at_a_time` says; it changes nothing but speed. A member that diverges harms nobody else.

    With a `team` of several processes each takes its share of every batch, examples rank, rank + size, ..., and gradients
    are averaged over the team, so that all hold the same parameters; all must be given the same batches. The state of
    training is saved after every `save_every` steps, and training goes on from what the team has saved.

    Raises ValueError for steps that do not exist, `every` without `validate` or the reverse, and what the optimiser and
    the layouts refuse.
    """
    record = tuple(record)
    if steps < 1:
        raise ValueError(f"steps = {steps} must be at least 1")
    if list(record) != sorted(set(record)) or any(not 0 <= step < steps for step in record):
        raise ValueError(f"record = {list(record)} must be increasing steps within 0..{steps - 1}")
    if (validate is None) != (every == 0) or every < 0:
        raise ValueError(f"early stopping needs both `validate` and every ≥ 1, got every = {every}")
    K, p = model.members, model.parameters
    adam = StackedAdamW(p, rates, weight_decay=weight_decay, clip=clip, betas=betas, eps=eps)
    gradients, losses = torch.empty_like(p), p.new_empty(K)
    parts: list[tuple[slice, StackedGPT]] = []
    seen, checks, checked = [], [], []
    best = p.clone() if validate else None
    best_step, least = torch.zeros(K, dtype=torch.int64), torch.full((K,), math.inf, dtype=torch.float64)
    state = team.load() if team else None
    start = 0 if state is None else int(state["step"])
    if state is not None:
        for kept, tensor in zip(state["kept"], (p, adam.m, adam.v, *([] if best is None else [best])), strict=True):
            tensor.copy_(kept)
        adam.count, best_step, least = start, state["best_step"], state["least"]
        seen, checks, checked = list(state["seen"]), list(state["checks"]), list(state["checked"])
    for step in range(start, steps):
        c, r = _share(batches(step), team)
        if not parts:
            size = chunk or members_at_a_time(model, r.shape[-2])
            parts = [(rows, model.narrow(rows.start, rows.stop - rows.start)) for rows in chunks(K, size)]
        for rows, part in parts:
            own = (c, r) if r.dim() == 2 else (c[rows], r[rows])
            losses[rows], _ = part.gradients(*own, out=gradients[rows])
        if team and team.size > 1:
            for tensor in (gradients, losses):
                torch.distributed.all_reduce(tensor)
                tensor /= team.size
        if step in record:
            seen.append(losses.to("cpu", torch.float64, copy=True))
        adam.step(gradients, schedule(step, steps, warmup))
        if validate and best is not None and ((step + 1) % every == 0 or step + 1 == steps):
            values = validate(model).detach().double().cpu()
            better = values < least
            least, best_step = torch.where(better, values, least), torch.where(better, step + 1, best_step)
            best = torch.where(better.to(p.device).unsqueeze(1), p, best)
            checks.append(step + 1)
            checked.append(values)
        if team and save_every and (step + 1) % save_every == 0:
            kept = [p, adam.m, adam.v, *([] if best is None else [best])]
            progress = {"seen": seen, "checks": checks, "checked": checked, "best_step": best_step, "least": least}
            team.save({"step": step + 1, "kept": kept, **progress})
    none = torch.empty(0, K, dtype=torch.float64)
    return Training(
        record,
        torch.stack(seen) if seen else none,
        tuple(checks),
        torch.stack(checked) if checked else none,
        best_step,
        best,
    )


def _share(batch: Batch, team: Team | None) -> Batch:
    """Return this process's examples of a batch; ValueError unless every process gets equally many."""
    c, r = batch
    if team is None or team.size == 1:
        return batch
    examples = 0 if r.dim() == 2 else 1
    if r.shape[examples] % team.size:
        raise ValueError(f"a batch of {r.shape[examples]} cannot be shared by {team.size} processes: use a multiple")
    mine = (slice(None),) * examples + (slice(team.rank, None, team.size),)
    return c[mine], r[mine]


CACHE_BYTES = 8 * 2**20
"""Activations of one chunk of members, in bytes, at which a CPU trains a stack fastest."""


def members_at_a_time(model: StackedGPT, batch: int) -> int:
    """Return how many members are best differentiated at a time: on a CPU as many as its cache holds, elsewhere all."""
    if model.parameters.device.type != "cpu":
        return model.members
    shape = model.shape
    each = batch * shape.positions * (shape.L * (12 * shape.d + shape.H * shape.positions) + 2 * shape.d)
    return max(1, CACHE_BYTES // (each * model.parameters.element_size()))
