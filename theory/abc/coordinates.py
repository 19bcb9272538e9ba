"""How far each layer of an abc-parametrized MLP moves in its first steps, and through which term.

Source: Yang & Hu, Feature Learning in Infinite-Width Neural Networks (Tensor Programs IV),
arXiv:2011.14522, Sections 3-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from theory.abc.networks import layer_rates, of_members, stacks
from theory.abc.spec import HIDDEN_QUANTITIES, QUANTITIES, AbcSpec
from theory.ensemble import StackedMLP, States, empirical_ntk, members_per_chunk
from theory.ensemble import loss as loss_named

MEASURED = (*QUANTITIES, "loss")
"""What `coordinate_check` can measure: the quantities whose exponents are predicted, and the training loss."""


def coordinate_check(
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
    record: Sequence[int] = (1, 2, 4),
    quantities: Sequence[str] = MEASURED,
    trainable: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Train for max(record) steps and return the sizes of what moved after each step t in `record`.

    Arrays are float64 [K, len(record), L] for hidden quantities (layer l at index l-1), [K, len(record), 1] otherwise.
    Sizes are root mean squares over probes and coordinates or outputs; Δ is the difference to initialisation:
      h0, f0             h_0^l and f_0 (the same at every t)
      dh, dx, df         Δh^l, Δx^l, Δf
      dWx                ΔW^l x_t^{l-1}, the part of h_t^l that layer l itself added
      dWx_out, W0dx_out  ΔW^{L+1} x_t^L and W_0^{L+1} Δx^L, which sum to Δf
      feature_kernel     |F_t - F_0| / |F_0|, Frobenius, with F = x^l x^l^T over the probes
      kernel_residual    |Δf - J_0 Δw| / |Δf|, with the Jacobian J_0 at initialisation
      ntk_change         |Θ_t - Θ_0| / |Θ_0|, output-averaged NTK on the probes, layers weighted by n^{-c_l}
      loss               loss of batch t before step t
    Members are measured in parts that fit the cache. Of tensors as large as a part's weights there are two at a time,
    the weights and their initial values, plus one layer for the Jacobian product; see `memory_bytes`. Raises ValueError
    for unknown quantities, steps t < 1, too few batches, and as `stack` does.
    """
    if unknown := [name for name in quantities if name not in MEASURED]:
        raise ValueError(f"unknown quantities {unknown}; there is {', '.join(MEASURED)}")
    given = x_batches.shape[-3]
    if not record or min(record) < 1 or max(record) > given:
        raise ValueError(f"record = {tuple(record)} must name steps between 1 and {given}, the number of batches given")
    x_batches, y_batches, probes = (t.to(device, dtype) for t in (x_batches, y_batches, probes))
    columns = {t: column for column, t in enumerate(record)}
    L = specs[0].L if specs else 0
    found = {name: np.empty((len(specs), len(record), L if name in HIDDEN_QUANTITIES else 1)) for name in quantities}
    for members, mlp in stacks(
        specs, seeds, n, activation, eta,
        d=x_batches.shape[-1], d_o=y_batches.shape[-1], rows=max(x_batches.shape[-2], probes.shape[-2]),
        trainable=trainable, dtype=dtype, device=device,
    ):  # fmt: skip
        x_part, y_part = of_members(x_batches, members, 3), of_members(y_batches, members, 3)
        probe = _Probe(mlp, of_members(probes, members, 2), layer_rates(specs[members], n), quantities)
        for t in range(1, max(record) + 1):
            x, y = x_part[..., t - 1, :, :], y_part[..., t - 1, :, :]
            f = mlp.step(x, y, loss)
            if t in columns:
                values = {"loss": [loss_named(loss)(f, y)], **probe.measure(mlp)}
                for name in quantities:
                    found[name][members, columns[t]] = torch.stack(values[name], dim=-1).double().cpu().numpy()
        del mlp, probe  # before the next part is built beside them
    return found


def memory_bytes(
    K: int, n: int, L: int, d: int, d_o: int, P: int, dtype: torch.dtype = torch.float64, *, batch: int = 16
) -> int:
    """Return an estimate of the peak memory of `coordinate_check` on a CPU, in bytes, beyond its arguments.

    Counts, for the members measured at a time: weights and initial weights, one layer for the Jacobian product, the
    states of P probes (initial, current, and their tangents), and the signals of the NTK, d_o P rows of n. Peaks
    measured for n = 512..4096 lie between 0.75 and 1.5 times the estimate; the allocator keeps some freed blocks.
    """
    sizes = (d, *[n] * L, d_o)
    members = min(K, members_per_chunk(sizes, max(batch, P), dtype))
    layers = [below * above for below, above in pairwise(sizes)]
    probe_states = (2 + 2 + 3) * L * P * n
    kernel = 3 * d_o * P * n + 3 * P * P
    training = batch * (d + 3 * L * n + 3 * d_o)
    return members * dtype.itemsize * (2 * sum(layers) + max(layers) + probe_states + kernel + training)


class _Probe:
    """The initial state of a stack, against which later states are measured."""

    def __init__(self, mlp: StackedMLP, probes: Tensor, layer_rates: Tensor, quantities: Sequence[str]) -> None:
        self.probes, self.wanted = probes, frozenset(quantities)
        self.layer_rates = layer_rates.to(mlp.weights[0])
        self.initial = StackedMLP(
            [w.clone() for w in mlp.weights],
            mlp.activation.name,
            multipliers=mlp.multipliers,
            trainable=mlp.trainable,
        )
        self.start = self.initial.states(probes)
        self.ntk = self._ntk(self.initial) if "ntk_change" in self.wanted else None

    def measure(self, mlp: StackedMLP) -> dict[str, list[Tensor]]:
        """Return each wanted quantity as a list over layers of [K] tensors."""
        initial, start, now = self.initial, self.start, mlp.states(self.probes)
        below = [self.probes, *now.x]
        out = mlp.L + 1
        found: dict[str, list[Tensor]] = {}
        for name in self.wanted:
            match name:
                case "h0":
                    found[name] = [_rms(h) for h in start.h]
                case "f0":
                    found[name] = [_rms(start.f)]
                case "dh":
                    found[name] = [_rms(h - h_0) for h, h_0 in zip(now.h, start.h, strict=True)]
                case "dx":
                    found[name] = [_rms(x - x_0) for x, x_0 in zip(now.x, start.x, strict=True)]
                case "df":
                    found[name] = [_rms(now.f - start.f)]
                case "dWx":
                    found[name] = [_rms(h - initial.layer(i, below[i - 1])) for i, h in enumerate(now.h, start=1)]
                case "dWx_out":
                    found[name] = [_rms(now.f - initial.layer(out, below[-1]))]
                case "W0dx_out":
                    found[name] = [_rms(initial.layer(out, below[-1]) - start.f)]
                case "feature_kernel":
                    found[name] = [_change(_gram(x), _gram(x_0)) for x, x_0 in zip(now.x, start.x, strict=True)]
                case "kernel_residual":
                    found[name] = [self._residual(mlp, now)]
                case "ntk_change":
                    assert self.ntk is not None
                    found[name] = [_change(self._ntk(mlp), self.ntk)]
        return found

    def _residual(self, mlp: StackedMLP, now: States) -> Tensor:
        tangent = (w - w_0 for w, w_0 in zip(mlp.weights, self.initial.weights, strict=True))  # one alive at a time
        _, tangents = self.initial.jvp(self.probes, tangent)
        df = now.f - self.start.f
        return _norm(df - tangents[-1]) / _norm(df)

    def _ntk(self, mlp: StackedMLP) -> Tensor:
        return empirical_ntk(mlp, self.probes, layer_rates=self.layer_rates)


def _rms(v: Tensor) -> Tensor:
    """Root mean square over all but the leading dimension."""
    return v.square().flatten(1).mean(1).sqrt()


def _norm(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1)


def _change(now: Tensor, start: Tensor) -> Tensor:
    return _norm(now - start) / _norm(start)


def _gram(x: Tensor) -> Tensor:
    return torch.bmm(x, x.mT)
