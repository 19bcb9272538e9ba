"""K multilayer perceptrons of equal shape as one program: batched matrix products, no autograd.

    h^l = m_l (w^l x^{l-1} + b^l),   x^l = φ(h^l),   f = h^{L+1},   x^0 = the input,

with trainable w^l (and, if wanted, b^l), and per member a multiplier m_l and a learning rate for each layer. Plain
networks, abc-parametrizations and frozen layers differ in these numbers only, so they can share one stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from theory.ensemble.activations import Activation, activation
from theory.ensemble.losses import loss as loss_named
from theory.ensemble.seeding import normal


class States:
    """Tensors of one forward and backward pass at one batch size: x^l, h^l where it is needed, f, and the signals."""

    def __init__(self, mlp: StackedMLP, batch: int, *, keep_h: bool, backward: bool) -> None:
        *hidden, self.f = [self.rows(mlp, index, batch) for index in range(mlp.L + 1)]
        self.x = hidden
        self.h = [torch.empty_like(x) for x in hidden] if keep_h else self.x
        self.signals = [torch.empty_like(t) for t in (*hidden, self.f)] if backward else []

    @staticmethod
    def rows(mlp: StackedMLP, index: int, batch: int) -> Tensor:
        """Return an empty [K, B, n_l] for layer `index`.

        For the readout it is stored transposed: with few outputs that makes the matrix product twice as fast.
        """
        w = mlp.weights[index]
        K, n = w.shape[:2]
        return w.new_empty(K, batch, n) if index < mlp.L else w.new_empty(K, n, batch).transpose(1, 2)


class StackedMLP:
    """K bias-free (by default) MLPs trained together by plain SGD, member by member independent.

    weights      one tensor [K, n_l, n_{l-1}] per layer l = 1..L+1; updated in place
    multipliers  [L+1, K] or None for ones
    rates        [L+1, K]: the learning rate of w^l; or one number for all. Change them with `set_rates`
    biases       one tensor [K, n_l] per layer, or None; they learn at the rate of their layer
    trainable    layers (1..L+1) that learn; None for all

    Inputs are [B, d], shared by all members, or [K, B, d]. Outputs returned by `forward` and `step` live in a buffer
    that the next call overwrites. Raises ValueError for shapes that do not fit together.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        activation_name: str,
        *,
        multipliers: Tensor | None = None,
        rates: Tensor | float = 0.0,
        biases: Sequence[Tensor] | None = None,
        trainable: Sequence[int] | None = None,
    ) -> None:
        self.weights = list(weights)
        self.biases = None if biases is None else list(biases)
        self.activation: Activation = activation(activation_name)
        self._check_shapes()
        self.trainable = tuple(range(1, self.L + 2)) if trainable is None else tuple(sorted(set(trainable)))
        if not self.trainable or not set(self.trainable) <= set(range(1, self.L + 2)):
            raise ValueError(f"trainable = {trainable} must name layers in 1..{self.L + 1}, at least one")
        self.multipliers = self._per_layer(1.0 if multipliers is None else multipliers, "multipliers")
        # A multiplier of one for every member is skipped: multiplying by it changes nothing.
        self._m = [None if bool((m == 1).all()) else m.view(-1, 1, 1) for m in self.multipliers]
        self.set_rates(rates)
        self._states: dict[int, States] = {}

    @property
    def members(self) -> int:
        """K, the number of networks."""
        return self.weights[0].shape[0]

    @property
    def L(self) -> int:
        """Number of hidden layers."""
        return len(self.weights) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """(d, n_1, ..., n_L, d_o)."""
        return (self.weights[0].shape[2], *(w.shape[1] for w in self.weights))

    def set_rates(self, rates: Tensor | float) -> None:
        """Set the learning rate of every layer and member, [L+1, K] or one number."""
        self.rates = self._per_layer(rates, "rates")
        self._minus_rates = [-r.view(-1, 1, 1) for r in self.rates]

    def narrow(self, start: int, length: int) -> StackedMLP:
        """Return members start .. start+length-1 as a stack that shares their weights: training it trains these."""
        return StackedMLP(
            [w.narrow(0, start, length) for w in self.weights],
            self.activation.name,
            multipliers=self.multipliers.narrow(1, start, length),
            rates=self.rates.narrow(1, start, length),
            biases=None if self.biases is None else [b.narrow(0, start, length) for b in self.biases],
            trainable=self.trainable,
        )

    def copy(self, dtype: torch.dtype | None = None) -> StackedMLP:
        """Return the same networks with parameters of their own, in another precision if asked for."""
        dtype = dtype or self.weights[0].dtype
        return StackedMLP(
            [w.to(dtype, copy=True) for w in self.weights],
            self.activation.name,
            multipliers=self.multipliers,
            rates=self.rates,
            biases=None if self.biases is None else [b.to(dtype, copy=True) for b in self.biases],
            trainable=self.trainable,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return f, [K, B, d_o], in a buffer that is overwritten by the next call with the same B."""
        return self._forward(self._inputs(x), self._training_states(x.shape[-2])).f

    def layer(self, number: int, below: Tensor) -> Tensor:
        """Return m_l (w^l x + b^l) of layer `number` (1..L+1) for given x^{l-1}, [K, B, n_{l-1}], as a new tensor."""
        return self._layer(number - 1, self._inputs(below), States.rows(self, number - 1, below.shape[-2]))

    def states(self, x: Tensor) -> States:
        """Return h^l, x^l (lists over l = 1..L, each [K, B, n_l]) and f as new tensors."""
        return self._forward(self._inputs(x), States(self, x.shape[-2], keep_h=True, backward=False))

    def predict(self, x: Tensor, rows: int = 64) -> Tensor:
        """Return f on many inputs as a new tensor [K, N, d_o], `rows` inputs at a time to bound memory."""
        x = self._inputs(x)
        outputs = x.new_empty(self.members, x.shape[1], self.sizes[-1])
        states: dict[int, States] = {}
        for part, out in zip(x.split(rows, dim=1), outputs.split(rows, dim=1), strict=True):
            batch = part.shape[1]
            if batch not in states:
                states[batch] = States(self, batch, keep_h=False, backward=False)
            out.copy_(self._forward(part, states[batch]).f)
        return outputs

    def step(self, x: Tensor, y: Tensor, loss: str) -> Tensor:
        """Take one SGD step on the batch (x, y) and return f as it was before the step.

        y is [B, d_o] or [K, B, d_o]; losses are means over the batch (see `theory.ensemble.losses`).
        """
        x = self._inputs(x)
        batch = x.shape[1]
        states = self._forward(x, self._training_states(batch))
        loss_named(loss).chi(states.f, y, states.signals[-1]).mul_(1.0 / batch)
        for index, s, below in self._backward(x, states):
            if index + 1 in self.trainable:
                s.mul_(self._minus_rates[index])
                self.weights[index].baddbmm_(s.transpose(1, 2), below)
                if self.biases is not None:
                    self.biases[index].add_(s.sum(1))
        return states.f

    def gradients(self, x: Tensor, chi: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients on w^l, [K, n_l, n_{l-1}], and b^l, [K, n_l], of Σ_{B,k} χ_k f_k for a given χ.

        With χ = dLoss/df this is the gradient of the loss (divide χ by B for a batch mean). χ is [B, d_o] or
        [K, B, d_o]. Layers below the lowest trainable one are left out at the front of both lists.
        """
        x = self._inputs(x)
        states = self._forward(x, self._training_states(x.shape[1]))
        states.signals[-1].copy_(chi)
        on_w, on_b = [], []
        for _, s, below in self._backward(x, states):
            on_w.append(torch.bmm(s.transpose(1, 2), below))
            on_b.append(s.sum(1))
        return on_w[::-1], on_b[::-1]

    def jvp(self, x: Tensor, dw: Iterable[Tensor], db: Iterable[Tensor] | None = None) -> tuple[States, list[Tensor]]:
        """Return the states at x and their derivative along (dw, db): dh^1, ..., dh^L, df, each [K, B, n_l].

        `dw` yields one tensor [K, n_l, n_{l-1}] per layer, from the input up; a generator keeps only one alive.
        """
        x = self._inputs(x)
        states = self._forward(x, States(self, x.shape[1], keep_h=True, backward=False))
        below, d_below, tangents = x, None, []
        biases = iter(db) if db is not None else None
        for index, tangent in enumerate(dw):
            dh = torch.bmm(below, tangent.transpose(1, 2))
            if d_below is not None:
                dh.baddbmm_(d_below, self.weights[index].transpose(1, 2))
            if biases is not None:
                dh.add_(next(biases).unsqueeze(1))
            _scale(dh, self._m[index])
            tangents.append(dh)
            if index < self.L:
                below = states.x[index]
                d_below = self.activation.pull(dh.clone(), states.h[index], below)
        return states, tangents

    def _forward(self, x: Tensor, states: States) -> States:
        below = x
        for index in range(self.L):
            h = self._layer(index, below, states.h[index])
            below = self.activation.apply(h, states.x[index])
        self._layer(self.L, below, states.f)
        return states

    def _layer(self, index: int, below: Tensor, out: Tensor) -> Tensor:
        w = self.weights[index]
        if index < self.L:
            torch.bmm(below, w.transpose(1, 2), out=out)
        else:
            torch.bmm(w, below.transpose(1, 2), out=out.transpose(1, 2))
        if self.biases is not None:
            out.add_(self.biases[index].unsqueeze(1))
        _scale(out, self._m[index])
        return out

    def _backward(self, x: Tensor, states: States) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (index, s, x^{l-1}) from the readout down, with s = m_l dLoss/dh^l, [K, B, n_l].

        The signal of the layer below is computed before its parent is yielded, so the caller may change both
        s and w^l in place.
        """
        lowest = self.trainable[0] - 1
        s = states.signals[-1]
        for index in range(self.L, lowest - 1, -1):
            _scale(s, self._m[index])
            below = states.signals[index - 1] if index > lowest else None
            if below is not None:
                torch.bmm(s, self.weights[index], out=below)
            yield index, s, states.x[index - 1] if index > 0 else x
            if below is not None:
                s = self.activation.pull(below, states.h[index - 1], states.x[index - 1])

    def _inputs(self, x: Tensor) -> Tensor:
        """Return x as [K, B, d], without copying shared inputs."""
        return x.expand(self.members, -1, -1) if x.dim() == 2 else x

    def _training_states(self, batch: int) -> States:
        if batch not in self._states:
            self._states[batch] = States(self, batch, keep_h=self.activation.needs_input, backward=True)
        return self._states[batch]

    def _per_layer(self, values: Tensor | float, what: str) -> Tensor:
        """Return [L+1, K] in the dtype and on the device of the weights."""
        w = self.weights[0]
        shape = (self.L + 1, self.members)
        if not isinstance(values, Tensor):
            return torch.full(shape, float(values), dtype=w.dtype, device=w.device)
        if values.shape != shape:
            raise ValueError(f"{what} must be [layers, members] = {list(shape)}, got {list(values.shape)}")
        return values.to(dtype=w.dtype, device=w.device)

    def _check_shapes(self) -> None:
        shapes = [tuple(w.shape) for w in self.weights]
        if len(shapes) < 2 or any(len(shape) != 3 for shape in shapes):
            raise ValueError(f"an MLP needs two or more weights [K, out, in], got {shapes}")
        for lower, upper in pairwise(shapes):
            if lower[0] != upper[0] or lower[1] != upper[2]:
                raise ValueError(f"weights {lower} and {upper} do not fit together: [K, out, in] then [K, _, out]")
        if self.biases is not None and [tuple(b.shape) for b in self.biases] != [s[:2] for s in shapes]:
            raise ValueError(f"biases must be [K, out] per layer, got {[tuple(b.shape) for b in self.biases]}")


def gaussian_mlp(
    sizes: Sequence[int],
    activation_name: str,
    seeds: Sequence[int],
    std: float,
    *,
    stream: str = "init",
    rates: Tensor | float = 0.0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> StackedMLP:
    """Return MLPs of layer sizes (d, n_1, ..., d_o) whose weights and biases are all iid N(0, std²), one per seed.

    Members draw from the stream (stream, seed, layer), so a member's numbers depend on its seed and the sizes alone.
    """
    draws = [
        torch.stack(
            [
                normal((above, below + 1), stream, seed, layer, tuple(sizes), dtype=dtype, device=device)
                for seed in seeds
            ]
        )
        * std
        for layer, (below, above) in enumerate(pairwise(sizes), start=1)
    ]
    return StackedMLP(
        [draw[..., :-1].contiguous() for draw in draws],
        activation_name,
        rates=rates,
        biases=[draw[..., -1].contiguous() for draw in draws],
    )


def _scale(tensor: Tensor, m: Tensor | None) -> None:
    if m is not None:
        tensor.mul_(m)
