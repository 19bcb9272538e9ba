"""Blocks of the Hessian of a multilayer perceptron: sums over examples, and where they go in the whole matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """One layer where it stands: a = w x + b with n outputs and n' inputs, then x' = φ(m a), or f = m a at the top."""

    w: Tensor  # [K, n, n']
    b: Tensor | None  # [K, n]
    m: Tensor  # [K, 1, 1]
    x: Tensor  # [K, N, n']
    x1: Tensor  # x̃: x and, with a bias, a last column of ones, [K, N, n' (+ 1)]
    slope: Tensor  # D = ∂x'/∂a = m φ'(m a), [K, N, n]; m at the top
    start: int  # where w begins in the flat parameters; b follows

    @property
    def n(self) -> int:
        """Outputs of the layer."""
        return self.w.shape[1]

    @property
    def below(self) -> int:
        """n', inputs of the layer."""
        return self.w.shape[2]

    @property
    def inputs(self) -> int:
        """n', and one more with a bias."""
        return self.x1.shape[2]

    @property
    def weights(self) -> slice:
        """Where w lies in the flat parameters."""
        return slice(self.start, self.start + self.n * self.below)

    @property
    def biases(self) -> slice:
        """Where b lies in them; empty without a bias."""
        end = self.weights.stop
        return slice(end, end if self.b is None else end + self.n)

    @property
    def all(self) -> slice:
        """Where both lie in them."""
        return slice(self.start, self.biases.stop)


def accumulate(sums: dict[Any, Tensor], key: Any, left: Tensor, right: Tensor) -> None:
    """Add left @ right to sums[key]."""
    if key in sums:
        sums[key].baddbmm_(left, right)
    else:
        sums[key] = torch.bmm(left, right)


def lower_triangle(square: Tensor) -> Tensor:
    """Return the entries on and below the diagonal of [K, c, n, n], row by row, as [K, c, n (n + 1) / 2]."""
    n = square.shape[3]
    row, column = torch.tril_indices(n, n, device=square.device)
    return square.flatten(2).index_select(2, row * n + column)


def triangle_of_squares(x: Tensor) -> Tensor:
    """Return x[a] x[b] for a ≥ b, row by row, of x [K, c, n], as [K, c, n (n + 1) / 2]."""
    row, column = torch.tril_indices(x.shape[2], x.shape[2], device=x.device)
    xt = x.mT.contiguous()  # gathering whole rows is faster
    return xt.index_select(1, row).mul_(xt.index_select(1, column)).mT


def place_diagonal(out: Tensor, layer: Layer, total: Tensor) -> None:
    """Write the block of one layer from the sums of C[k,p] x̃[a] x̃[b] over k ≥ p and a ≥ b, [K, (k p), (a b)]."""
    K, width = total.shape[0], layer.inputs
    row, column = torch.tril_indices(width, width, device=total.device)
    where = torch.empty(width, width, dtype=torch.int64, device=total.device)
    where[row, column] = where[column, row] = torch.arange(len(row), device=total.device)
    where = where.flatten()
    room, first = total.new_empty(K * layer.n * width**2), 0
    for k in range(layer.n):
        units = total[:, first : first + k + 1]  # all p ≤ k
        first += k + 1
        square = room[: K * (k + 1) * width**2].view(K, k + 1, width**2)  # the same memory each time: touched once
        torch.index_select(units, 2, where, out=square)
        block = square.view(K, 1, k + 1, width, width).transpose(2, 3)
        place(out, layer, layer, block, k, 0)
        if k:
            place(out, layer, layer, block[:, :, :, :k].permute(0, 3, 4, 1, 2), 0, k)


def place(out: Tensor, lower: Layer, upper: Layer, block: Tensor, p: int, k: int) -> None:
    """Write block[p, b, k, a], [K, units, x̃ of lower, units, x̃ of upper], to rows (p, b) and columns (k, a) of `out`.

    The units of both layers start at the given p and k. In the flat order the last b and a, the bias, come after all
    weights of their layer.
    """
    P, Q = block.shape[1], block.shape[3]
    wp, wk = lower.start + p * lower.below, upper.start + k * upper.below
    rows, columns = slice(wp, wp + P * lower.below), slice(wk, wk + Q * upper.below)
    on_w = out[:, rows, columns].unflatten(2, (Q, upper.below)).unflatten(1, (P, lower.below))
    on_w.copy_(block[:, :, : lower.below, :, : upper.below])
    bp, bk = lower.biases.start + p, upper.biases.start + k
    if lower.b is not None:
        out[:, bp : bp + P, columns] = block[:, :, lower.below, :, : upper.below].flatten(2)
    if upper.b is not None:
        out[:, rows, bk : bk + Q] = block[:, :, : lower.below, :, upper.below].flatten(1, 2)
    if lower.b is not None and upper.b is not None:
        out[:, bp : bp + P, bk : bk + Q] = block[:, :, lower.below, :, upper.below]
