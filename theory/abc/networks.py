"""Stacks of MLPs under abc-parametrizations: any mix of specs, seeds and learning rates at one depth and width.

Source: Yang & Hu, Feature Learning in Infinite-Width Neural Networks (Tensor Programs IV), arXiv:2011.14522, Section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from theory.abc.spec import AbcSpec, Exponent
from theory.ensemble import StackedMLP, chunks, members_per_chunk, normal


def stack(
    specs: Sequence[AbcSpec],
    seeds: Sequence[int],
    n: int,
    activation: str,
    eta: float | Sequence[float],
    *,
    d: int,
    d_o: int,
    trainable: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> StackedMLP:
    """Return the networks of K specs and seeds at width n: W^l = n^{-a_l} w^l, SGD on w^l at rate η n^{-c_l}.

    w^l is σ_l n^{-b_l} times standard normal draws that depend on (seed, n, l, shape) alone: specs related by the
    symmetry of `AbcSpec.shift` start from the same draws. Raises ValueError if the numbers of specs, seeds and learning
    rates differ, or the specs differ in L.
    """
    _check(specs, seeds, eta)
    L = specs[0].L
    widths = (d, *[n] * L, d_o)
    std = [[sigma * power(n, b) for sigma, b in zip(spec.sigma, spec.b, strict=True)] for spec in specs]
    weights = []
    for index, shape in enumerate(((above, below) for below, above in pairwise(widths))):
        w = torch.empty(len(specs), *shape, dtype=dtype, device=device)
        for seed in dict.fromkeys(seeds):
            draw = normal(shape, "init", seed, n, index + 1, shape, dtype=dtype, device=device)
            for member in (k for k, other in enumerate(seeds) if other == seed):
                torch.mul(draw, std[member][index], out=w[member])
        weights.append(w)
    rates = layer_rates(specs, n) * torch.as_tensor(eta, dtype=torch.float64)
    multipliers = torch.tensor([[power(n, a) for a in spec.a] for spec in specs], dtype=torch.float64).T
    return StackedMLP(weights, activation, multipliers=multipliers, rates=rates, trainable=trainable)


def stacks(
    specs: Sequence[AbcSpec],
    seeds: Sequence[int],
    n: int,
    activation: str,
    eta: float | Sequence[float],
    *,
    d: int,
    d_o: int,
    rows: int,
    trainable: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[slice, StackedMLP]]:
    """Yield the K networks of `stack` in parts that fit the cache, with the members each part holds.

    `rows` is the number of inputs in one pass. Only one part exists at a time if the caller keeps none.
    """
    _check(specs, seeds, eta)
    sizes = (d, *[n] * specs[0].L, d_o)
    etas = [float(eta)] * len(specs) if isinstance(eta, (int, float)) else list(eta)
    for part in chunks(len(specs), members_per_chunk(sizes, rows, dtype, device)):
        yield part, stack(
            specs[part], seeds[part], n, activation, etas[part],
            d=d, d_o=d_o, trainable=trainable, dtype=dtype, device=device,
        )  # fmt: skip


def of_members(values: Tensor, rows: slice, shared_dims: int) -> Tensor:
    """Return some members' part of a tensor with a leading K; one of `shared_dims` dimensions is shared by all."""
    return values if values.dim() == shared_dims else values[rows]


def layer_rates(specs: Sequence[AbcSpec], n: int) -> Tensor:
    """Return n^{-c_l}, float64 [L+1, K]: the learning rates of the layers relative to η."""
    return torch.tensor([[power(n, c) for c in spec.c] for spec in specs], dtype=torch.float64).T


def power(n: int, exponent: Exponent) -> float:
    """Return n^{-exponent}; an infinite exponent gives 0."""
    return 0.0 if exponent == math.inf else float(n) ** -float(exponent)


def _check(specs: Sequence[AbcSpec], seeds: Sequence[int], eta: float | Sequence[float]) -> None:
    lengths = {"specs": len(specs), "seeds": len(seeds)}
    if not isinstance(eta, (int, float)):
        lengths["eta"] = len(eta)
    if len(set(lengths.values())) != 1 or not specs:
        raise ValueError(f"one spec, seed and learning rate per member are needed, got {lengths}")
    if len(depths := {spec.L for spec in specs}) != 1:
        raise ValueError(f"members of one stack must have the same depth, got L = {sorted(depths)}")
