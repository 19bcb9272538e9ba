"""Losses as the theory writes them: sum over outputs, mean over the batch, and χ = dLoss/df by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss of outputs f against targets y, both [..., B, d_o]; for "xent" the rows of y are probabilities.

    `chi(f, y, out)` writes the derivative of one example's loss, without the 1/B of the batch mean, to `out`.
    `value(f, y)` is the loss of each example, [..., B].
    """

    name: str
    chi: Callable[[Tensor, Tensor, Tensor], Tensor]
    per_example: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the batch loss [...]: mean over examples."""
        return self.per_example(f, y).mean(-1)


def _xent_chi(f: Tensor, y: Tensor, out: Tensor) -> Tensor:
    # `StackedMLP` keeps outputs as rows in memory; a softmax along rows is twenty times faster than one across them.
    torch.softmax(f.mT, -2, out=out.mT)
    return out.sub_(y)


LOSSES: Mapping[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "mse",
            lambda f, y, out: torch.sub(f, y, out=out),
            lambda f, y: (f - y).square_().sum(-1).mul_(0.5),
        ),
        Loss("linear", lambda f, y, out: torch.neg(y.expand_as(f), out=out), lambda f, y: -(f * y).sum(-1)),
        Loss(
            "xent",
            _xent_chi,
            lambda f, y: torch.logsumexp(f, -1) - (f * y).sum(-1),
        ),
    )
}


def loss(name: str) -> Loss:
    """Return the loss of that name; ValueError listing the known ones otherwise."""
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; there is {', '.join(sorted(LOSSES))}")
    return LOSSES[name]
