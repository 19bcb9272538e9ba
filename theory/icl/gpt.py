"""K small GPTs of one architecture as one program: batched matrix products over [K, B·S, d], attention over K·B sequences.

A block is x ← x + attention(N x), x ← x + W₂ relu(W₁ N x) with the layer norm N of "pre-ln", and one more N before the
readout. N has no gain and bias of its own: the linear maps that follow it, which have biases, absorb them. For
"unit-ball" a block is x ← Π(γ₁ x + attention(x)), x ← Π(γ₂ x + W₂ relu(W₁ x)) with trainable γ and Π the projection of
each row into the unit ball (Zhang et al. 2023, section 5), and the readout follows at once. Attention is causal, softmax of
scores over √(d/H); logits or ŷ are read off where the layout says (`theory.icl.layouts`).

The parameters of a member are one row of a tensor [K, P], so that clipping, Adam and keeping the best are plain row-wise
arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from theory.ensemble import normal
from theory.icl.layouts import Architecture, tokens

CHUNK_NUMBERS = 2**22
"""Numbers in the largest activations of one chunk of `predict` and `losses`."""


class StackedGPT:
    """K GPTs that share an architecture and nothing else.

    parameters  [K, P], a row per member; updated in place by training. `named` gives them by name
    autocast    torch.bfloat16 to compute in mixed precision, or None

    Raises ValueError for parameters that do not fit the architecture.
    """

    def __init__(self, shape: Architecture, parameters: Tensor, *, autocast: torch.dtype | None = None) -> None:
        sizes = {name: math.prod(each) for name, (each, _) in parameter_shapes(shape).items()}
        if parameters.dim() != 2 or parameters.shape[1] != sum(sizes.values()):
            raise ValueError(f"parameters must be [K, P] = [K, {sum(sizes.values())}], got {list(parameters.shape)}")
        self.shape, self.parameters, self.autocast = shape, parameters, autocast

    @property
    def members(self) -> int:
        """K, the number of networks."""
        return self.parameters.shape[0]

    @cached_property
    def named(self) -> dict[str, Tensor]:
        """The parameters by name, [K, in, out] each: views of `parameters`, and leaves for autograd."""
        shapes = {name: each for name, (each, _) in parameter_shapes(self.shape).items()}
        parts = self.parameters.detach().split([math.prod(each) for each in shapes.values()], 1)
        return {
            name: part.unflatten(1, each).requires_grad_()
            for (name, each), part in zip(shapes.items(), parts, strict=True)
        }

    def narrow(self, start: int, length: int) -> StackedGPT:
        """Return members start .. start+length-1 as a stack that shares their parameters: training it trains these."""
        return StackedGPT(self.shape, self.parameters.narrow(0, start, length), autocast=self.autocast)

    def with_parameters(self, parameters: Tensor) -> StackedGPT:
        """Return the same architecture with other parameters, [K, P], such as the best ones of a training."""
        return StackedGPT(self.shape, parameters, autocast=self.autocast)

    def predict(self, covariates: Tensor, responses: Tensor) -> Tensor:
        """Return log P(r_i = · | c_1, r_1, ..., c_i), [K, n, t, R], or ŷ_i, [K, n, t], at every position i at once.

        Prompts are [n, t] for all members or [K, n, t], with t ≤ T (x [n, t, d_x]); the last response is not read.
        Computed in chunks of prompts to bound memory, without a graph. Raises ValueError as `tokens` does.
        """
        with torch.no_grad():
            parts = [
                self._outputs(c, r).log_softmax(-1) if self.shape.categorical else self._outputs(c, r)
                for c, r in self._chunks(covariates, responses)
            ]
        return torch.cat(parts, 1)

    def losses(self, covariates: Tensor, responses: Tensor) -> Tensor:
        """Return the loss of every member, [K]: cross-entropy of the responses, or squared error, mean over n and t.

        Data as for `predict`; computed in chunks, without a graph.
        """
        total = self.parameters.new_zeros(self.members)
        count = 0
        with torch.no_grad():
            for c, r in self._chunks(covariates, responses):
                total += r.shape[-2] * self._losses(c, r)
                count += r.shape[-2]
        return total / count

    def gradients(self, covariates: Tensor, responses: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the losses, [K], and the gradient of each on the member's own parameters, [K, P].

        Data as for `predict`, in one piece. Losses are summed over members, never averaged, so gradients do not depend
        on K. `out` takes the gradients if given.
        """
        losses = self._losses(*self._inputs(covariates, responses))
        found = torch.autograd.grad(losses.sum(), list(self.named.values()))
        return losses.detach(), torch.cat([g.flatten(1) for g in found], 1, out=out)

    def _losses(self, c: Tensor, r: Tensor) -> Tensor:
        outputs = self._outputs(c, r)
        if self.shape.categorical:
            each = F.cross_entropy(outputs.flatten(0, -2), r.expand(outputs.shape[:-1]).flatten(), reduction="none")
        else:
            each = (outputs - r).square()
        return each.view(self.members, -1).mean(1)

    def _outputs(self, c: Tensor, r: Tensor) -> Tensor:
        """Return logits [K, n, t, R], or ŷ [K, n, t]."""
        device = self.parameters.device.type
        read = tokens(self.shape, c, r)
        with torch.autocast(device, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            outputs = self._forward(read.expand(self.members, *read.shape[-3:]))
        outputs = outputs.to(self.parameters.dtype)
        return outputs if self.shape.categorical else outputs.squeeze(-1)

    def _forward(self, read: Tensor) -> Tensor:
        K, n, S, _ = read.shape
        w, d, H = self.named, self.shape.d, self.shape.H
        x = (self._embed(read).view(K, n, S, d) + w["positions"][:, None, :S]).view(K, n * S, d)
        for block in range(1, self.shape.L + 1):
            qkv = torch.baddbmm(w[f"{block}.qkv_bias"], self._normed(x), w[f"{block}.qkv"])
            mixed = causal_attention(qkv.view(K * n, S, 3 * d), H).reshape(K, n * S, d)
            x = self._residual(x, torch.baddbmm(w[f"{block}.out_bias"], mixed, w[f"{block}.out"]), f"{block}.gamma_1")
            up = torch.baddbmm(w[f"{block}.up_bias"], self._normed(x), w[f"{block}.up"]).relu_()
            x = self._residual(x, torch.baddbmm(w[f"{block}.down_bias"], up, w[f"{block}.down"]), f"{block}.gamma_2")
        if self.shape.stride > 1:  # covariates sit at every other token
            x = x.view(K, n, S, d)[:, :, :: self.shape.stride].reshape(K, -1, d)
        return torch.baddbmm(w["head_bias"], self._normed(x), w["head"]).view(K, n, -1, self.shape.outputs)

    def _embed(self, read: Tensor) -> Tensor:
        """Return the sum of the table rows of every token, or the linear image of its features, [K, n·S, d]."""
        table = self.named["table"]
        K, V, d = table.shape
        read = read.flatten(1, 2)  # [K, n·S, m]
        if not self.shape.categorical:
            return torch.bmm(read, table)
        if 4 * d >= V:  # a product with ones and zeros is several times faster than a gather, forth and back
            ones = table.new_zeros(*read.shape[:2], V).scatter_(2, read, 1.0)  # rows of one token are distinct
            return torch.bmm(ones, table)
        rows = read + V * torch.arange(K, device=read.device).view(K, 1, 1)
        return F.embedding_bag(rows.flatten(0, 1), table.reshape(K * V, d), mode="sum").view(K, -1, d)

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.shape.d,)) if self.shape.norm == "pre-ln" else x

    def _residual(self, x: Tensor, change: Tensor, gamma: str) -> Tensor:
        if self.shape.norm == "pre-ln":
            return x + change
        return into_unit_ball(torch.addcmul(change, self.named[gamma], x))

    def _inputs(self, covariates: Tensor, responses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data on the device, and real data in the precision, of the parameters."""
        if responses.dim() not in (2, 3) or (responses.dim() == 3 and responses.shape[0] != self.members):
            raise ValueError(
                f"responses must be [n, t], or [K, n, t] with K = {self.members}, got {list(responses.shape)}"
            )
        p = self.parameters
        return tuple(  # type: ignore[return-value]
            t.to(p.device, p.dtype if t.is_floating_point() else None) for t in (covariates, responses)
        )

    def _chunks(self, covariates: Tensor, responses: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the data, a few prompts at a time."""
        width = max(4 * self.shape.d, self.shape.H * self.shape.positions, self.shape.width_in)
        rows = max(1, CHUNK_NUMBERS // (self.members * self.shape.positions * width))
        axis = responses.dim() - 2
        parts = (covariates.split(rows, axis), responses.split(rows, axis))
        yield from (self._inputs(c, r) for c, r in zip(*parts, strict=True))


def parameter_shapes(shape: Architecture) -> dict[str, tuple[tuple[int, int], float]]:
    """Return for every parameter of a member its shape (in, out) and the standard deviation of its first values.

    That is 1/√in for weights, over √(2L) where a block writes to the residual stream, 1/√d for embeddings, 0 for biases.
    γ is 1 at first.
    """
    d, L, rows = shape.d, shape.L, shape.width_in
    found = {
        "table": ((rows, d), (d if shape.categorical else rows) ** -0.5),
        "positions": ((shape.positions, d), d**-0.5),
    }
    for block in range(1, L + 1):
        layers = {
            "qkv": (d, 3 * d, 1.0),
            "out": (d, d, (2 * L) ** -0.5),
            "up": (d, 4 * d, 1.0),
            "down": (4 * d, d, (2 * L) ** -0.5),
        }
        for name, (below, above, scale) in layers.items():
            found[f"{block}.{name}"] = ((below, above), scale * below**-0.5)
            found[f"{block}.{name}_bias"] = ((1, above), 0.0)
        if shape.norm == "unit-ball":
            found |= {f"{block}.gamma_1": ((1, 1), 0.0), f"{block}.gamma_2": ((1, 1), 0.0)}
    return found | {"head": ((d, shape.outputs), d**-0.5), "head_bias": ((1, shape.outputs), 0.0)}


def gaussian_gpt(
    shape: Architecture,
    seeds: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> StackedGPT:
    """Return GPTs with Gaussian first weights as `parameter_shapes` says, one per seed.

    Members draw from the streams ("gpt", seed, name, shape), so a member's numbers depend on its seed and the
    architecture alone. Raises ValueError for no seeds.
    """
    if not seeds:
        raise ValueError("a stack needs at least one member: pass one seed for each")

    def row(seed: int) -> Tensor:
        parts = [
            torch.ones(1, dtype=torch.float64)
            if "gamma" in name
            else std * normal(each, "gpt", seed, name, each).flatten()
            for name, (each, std) in parameter_shapes(shape).items()
        ]
        return torch.cat(parts)

    return StackedGPT(shape, torch.stack([row(seed) for seed in seeds]).to(device, dtype), autocast=autocast)


def into_unit_ball(x: Tensor) -> Tensor:
    """Return x with every row longer than 1 scaled to length 1."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1.0)


EXPLICIT_LENGTH = 128
"""Up to this many tokens, batched products are up to 1.7 times as fast as the fused kernel on a CPU; beyond, slower."""

VECTOR = 16
"""Numbers in the widest vector register of a CPU: the softmax of shorter rows takes ten times as long per number."""


def causal_attention(qkv: Tensor, heads: int) -> Tensor:
    """Return causal multi-head attention, [N, S, d], of N sequences with queries, keys and values in qkv [N, S, 3d]."""
    N, S, width = qkv.shape
    if qkv.device.type == "cpu" and S <= EXPLICIT_LENGTH:
        mixed: Tensor = _Attention.apply(qkv, heads)
        return mixed
    q, k, v = qkv.view(N, S, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(N, S, width // 3)


class _Attention(torch.autograd.Function):
    """Causal attention by batched products of all heads at once, with its gradient written out."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, qkv: Tensor, heads: int) -> Tensor:
        N, S, width = qkv.shape
        split = _by_head(qkv.view(N, S, 3, heads, width // 3 // heads))
        q, k, v = split
        P, each = q.shape[1:]
        ahead = torch.full((P, P), -math.inf, dtype=qkv.dtype, device=qkv.device).triu(1)
        a = torch.baddbmm(ahead, q, k.mT, alpha=each**-0.5).softmax(-1).to(qkv.dtype)
        ctx.save_for_backward(split, a)
        mixed = torch.empty_like(split[:1])
        _product(a, v, mixed[0])
        return _by_token(mixed, N, S)

    @staticmethod
    def backward(ctx, on_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        split, a = ctx.saved_tensors
        q, k, v = split
        N, S, _ = on_output.shape
        (on_mixed,) = _by_head(on_output.view(N, S, 1, -1, v.shape[2]))
        on_split = torch.empty_like(split)
        _product(a.mT, on_mixed, on_split[2])
        on_scores = torch.ops.aten._softmax_backward_data(torch.bmm(on_mixed, v.mT), a, -1, a.dtype)
        on_scores.mul_(v.shape[2] ** -0.5)
        _product(on_scores, k, on_split[0])
        _product(on_scores.mT, q, on_split[1])
        return _by_token(on_split, N, S), None


def _by_head(x: Tensor) -> Tensor:
    """Return x [N, S, m, H, e] as [m, N·H, P, e], P ≥ S: rows are added behind the last token, where nobody looks.

    Whichever of P and e fills a vector register lies last in memory.
    """
    N, S, m, H, e = x.shape
    P, thin = max(S, VECTOR), e < VECTOR
    size = (m, N, H, e, P) if thin else (m, N, H, P, e)
    heads = x.new_zeros(size) if P > S else x.new_empty(size)
    heads = heads.mT if thin else heads
    heads[..., :S, :] = x.permute(2, 0, 3, 1, 4)
    return heads.flatten(1, 2)


def _by_token(x: Tensor, N: int, S: int) -> Tensor:
    """Return x [m, N·H, P, e] as [N, S, m·H·e]."""
    return x.unflatten(1, (N, -1))[..., :S, :].permute(1, 3, 0, 2, 4).reshape(N, S, -1)


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a b into `out`, by way of its transpose if that is what lies contiguous in memory."""
    if out.is_contiguous():
        torch.bmm(a, b, out=out)
    else:
        torch.bmm(b.mT, a.mT, out=out.mT)
