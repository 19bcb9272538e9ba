"""K small vision transformers of one architecture as one program, and what fine-tuning may train of each.

A block is x <- x + attention(N x), x <- x + W2 relu(W1 N x) with the layer norm N, and one more N before the head, which
reads the class token. N has no gain and bias of its own. Queries, keys and values have no bias. In the last block only
the class token asks: nothing else is read.

An `Adapter` says what is trained beside the head. What a member trains is one row of a tensor [K, P], so that an
optimiser is plain row-wise arithmetic; what it does not train is a row of another tensor, without gradients.
Source of the adapters: Liang et al. 2024, arXiv:2406.14036 (NTK-attention); Hu et al. 2022, arXiv:2106.09685 (LoRA);
Liu et al. 2022, arXiv:2110.07602 (P-Tuning v2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from theory.ensemble import Batches, StackedAdamW, chunks, normal, schedule
from theory.ntk_attention.attention import Folded, ntk_attention, prefix_attention
from theory.ntk_attention.features import Elu1

AT_A_TIME = 100
"""Images of every member that `features` looks at together: as many in every stack, for products of other sizes round
otherwise."""
CACHE_BYTES = 8 * 2**20
"""Activations of one chunk of members, in bytes, at which a CPU trains a stack fastest."""


@dataclass(frozen=True)
class Architecture:
    """Grey images of side x side pixels, cut into patch x patch pieces; d numbers a token, H heads, L blocks.

    Raises ValueError for sizes that do not divide one another or are not positive.
    """

    side: int = 8
    patch: int = 2
    d: int = 32
    heads: int = 2
    layers: int = 2
    hidden: int = 64
    classes: int = 10

    def __post_init__(self) -> None:
        sizes = vars(self)
        if min(sizes.values()) < 1:
            raise ValueError(f"sizes of an architecture must be at least 1, got {sizes}")
        for whole, part in (("side", "patch"), ("d", "heads")):
            if sizes[whole] % sizes[part]:
                raise ValueError(f"{part} = {sizes[part]} must divide {whole} = {sizes[whole]}")

    @property
    def patches(self) -> int:
        """Patches in an image: tokens beside the class token."""
        return (self.side // self.patch) ** 2

    @property
    def head_dim(self) -> int:
        """Dimension of a query."""
        return self.d // self.heads

    @property
    def weights(self) -> int:
        """Numbers in a member without its head."""
        return sum(math.prod(each) for each, _ in weight_shapes(self).values())


@dataclass(frozen=True)
class Adapter:
    """What is trained beside the head: "none", "full" (all weights), "lora", "prefix" or "ntk".

    size    rank of "lora" (queries and values), rows m of "prefix" (untied keys and values per head and block)
    start   "ntk": kappa is the softplus of what is trained and begins at softplus(-4), "softplus"; or it is the absolute
            value of what is trained and begins at 0, "zeros", as in the authors' code for vision transformers
    frozen  "ntk" from zeros, and it stays there: the head alone is trained
    """

    kind: Literal["none", "full", "lora", "prefix", "ntk"]
    size: int = 0
    start: Literal["softplus", "zeros"] = "softplus"
    frozen: bool = False

    def __post_init__(self) -> None:
        if (self.kind in ("lora", "prefix")) != (self.size > 0):
            raise ValueError(f"size = {self.size} of {self.kind!r}: 'lora' and 'prefix' have one, the others none")
        if self.frozen and (self.kind, self.start) != ("ntk", "zeros"):
            raise ValueError(f"only 'ntk' from zeros can be frozen, got {self.kind!r} from {self.start!r}")

    @property
    def moves(self) -> bool:
        """Whether features change while training."""
        return self.kind != "none" and not self.frozen


def weight_shapes(shape: Architecture) -> dict[str, tuple[tuple[int, int], float]]:
    """Return for every weight of a member but its head the shape (in, out) and the deviation of its first values."""
    d, pixels = shape.d, shape.patch**2
    found = {
        "embed": ((pixels, d), pixels**-0.5),
        "embed_bias": ((1, d), 0.0),
        "positions": ((shape.patches + 1, d), d**-0.5),  # the class token is its position
    }
    for block in range(shape.layers):
        found |= {
            f"{block}.qkv": ((d, 3 * d), d**-0.5),
            f"{block}.out": ((d, d), (2 * shape.layers * d) ** -0.5),
            f"{block}.out_bias": ((1, d), 0.0),
            f"{block}.up": ((d, shape.hidden), d**-0.5),
            f"{block}.up_bias": ((1, shape.hidden), 0.0),
            f"{block}.down": ((shape.hidden, d), (2 * shape.layers * shape.hidden) ** -0.5),
            f"{block}.down_bias": ((1, d), 0.0),
        }
    return found


def adapter_shapes(shape: Architecture, adapter: Adapter) -> dict[str, tuple[tuple[int, ...], float, float]]:
    """Return for everything a member trains beside its head the shape, the first values' mean and deviation."""
    d, H, e = shape.d, shape.heads, shape.head_dim
    if adapter.kind == "full":
        return {name: (each, 0.0, std) for name, (each, std) in weight_shapes(shape).items()}
    found: dict[str, tuple[tuple[int, ...], float, float]] = {}
    for block in range(shape.layers):
        if adapter.kind == "lora":
            for side in ("q", "v"):
                found[f"{block}.{side}_in"] = ((d, adapter.size), 0.0, d**-0.5)
                found[f"{block}.{side}_out"] = ((adapter.size, d), 0.0, 0.0)
        elif adapter.kind == "prefix":
            for side in ("k", "v"):  # as torch.nn.Embedding begins, in which P-Tuning v2 keeps them
                found[f"{block}.prefix_{side}"] = ((H, adapter.size, e), 0.0, 1.0)
        elif adapter.kind == "ntk":
            found[f"{block}.Z"] = ((H, e, e), 0.0, 0.0)
            found[f"{block}.kappa"] = ((H, e), 0.0 if adapter.start == "zeros" else -4.0, 0.0)
    return found


def _head_shapes(shape: Architecture) -> dict[str, tuple[tuple[int, ...], float, float]]:
    return {"head": ((shape.d, shape.classes), 0.0, 0.0), "head_bias": ((1, shape.classes), 0.0, 0.0)}


class StackedViT:
    """K transformers that share an architecture and an adapter, and nothing else.

    weights  [K, W] what pre-training has made, as `weight_shapes` lays it out; None for the adapter "full"
    trained  [K, P] the adapter's numbers as `adapter_shapes` lays them out (none if frozen), then the head; updated in
             place by training

    Raises ValueError for rows that do not fit the architecture.
    """

    def __init__(self, shape: Architecture, adapter: Adapter, weights: Tensor | None, trained: Tensor) -> None:
        self.shape, self.adapter, self.weights, self.trained = shape, adapter, weights, trained
        P = sum(math.prod(each) for each, _, _ in self._layout.values())
        if trained.dim() != 2 or trained.shape[1] != P:
            raise ValueError(f"trained must be [K, P] = [K, {P}], got {list(trained.shape)}")
        if adapter.kind == "full":
            if weights is not None:
                raise ValueError("the adapter 'full' trains its weights: put them into `trained` and pass None")
        elif weights is None or weights.shape != (self.members, shape.weights):
            found = None if weights is None else list(weights.shape)
            raise ValueError(f"weights must be [K, W] = [{self.members}, {shape.weights}], got {found}")
        self._phi = Elu1(shape.head_dim)

    @property
    def members(self) -> int:
        """K, the number of networks."""
        return self.trained.shape[0]

    @property
    def _layout(self) -> dict[str, tuple[tuple[int, ...], float, float]]:
        own = {} if self.adapter.frozen else adapter_shapes(self.shape, self.adapter)
        return own | _head_shapes(self.shape)

    @cached_property
    def named(self) -> dict[str, Tensor]:
        """What is trained by name, [K, *shape] each: views of `trained`, and leaves for autograd."""
        sizes = [math.prod(each) for each, _, _ in self._layout.values()]
        parts = self.trained.detach().split(sizes, 1)
        return {
            name: part.unflatten(1, each).requires_grad_()
            for (name, (each, _, _)), part in zip(self._layout.items(), parts, strict=True)
        }

    @cached_property
    def frozen(self) -> dict[str, Tensor]:
        """What is not trained by name, [K, *shape] each, without gradients."""
        found: dict[str, Tensor] = {}
        if self.weights is not None:
            shapes = {name: each for name, (each, _) in weight_shapes(self.shape).items()}
            parts = self.weights.detach().split([math.prod(each) for each in shapes.values()], 1)
            found = {n: part.unflatten(1, each) for (n, each), part in zip(shapes.items(), parts, strict=True)}
        if self.adapter.frozen:
            for name, (each, mean, _) in adapter_shapes(self.shape, self.adapter).items():
                found[name] = torch.full((self.members, *each), mean, dtype=self.trained.dtype).to(self.trained.device)
        return found

    def narrow(self, start: int, length: int) -> StackedViT:
        """Return members start .. start+length-1 as a stack that shares their numbers: training it trains these."""
        weights = None if self.weights is None else self.weights.narrow(0, start, length)
        return StackedViT(self.shape, self.adapter, weights, self.trained.narrow(0, start, length))

    def members_at_a_time(self, batch: int) -> int:
        """Return how many members are best differentiated at a time: on a CPU as many as its cache holds, else all."""
        if self.trained.device.type != "cpu":
            return self.members
        each = batch * (self.shape.patches + 1) * 12 * self.shape.d * self.trained.element_size()
        return max(
            3, CACHE_BYTES // each
        )  # then no chunk of several has one member: its products would round otherwise

    @property
    def kappa(self) -> Tensor | None:
        """The denominators' numbers as attention uses them, [K, L, H, r], none of them negative; None without them."""
        if self.adapter.kind != "ntk":
            return None
        every = self.frozen | self.named
        return torch.stack([self._positive(every[f"{block}.kappa"]) for block in range(self.shape.layers)], 1).detach()

    def features(self, images: Tensor) -> Tensor:
        """Return what the head reads of images [K, n, side²], [K, n, d], in chunks and without a graph."""
        with torch.no_grad():
            return torch.cat([self._features(part) for part in images.split(AT_A_TIME, 1)], 1)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of features [K, n, d], [K, n, classes]."""
        return torch.baddbmm(self.named["head_bias"], features, self.named["head"])

    def gradients(self, images: Tensor, labels: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the losses, [K], and the gradient of each on what its member trains, [K, P].

        images [K, n, side²], or their features [K, n, d] where features do not move; labels [K, n]. Losses are means
        over n, summed over members, so gradients do not depend on K. `out` takes the gradients if given.
        """
        losses = self._losses(self._features(images) if self.adapter.moves else images, labels)
        found = torch.autograd.grad(losses.sum(), list(self.named.values()))
        return losses.detach(), torch.cat([g.flatten(1) for g in found], 1, out=out)

    def judged(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy of every member, [K] float64 each, on images [K, n, side²] with labels [K, n]."""
        with torch.no_grad():
            features = self.features(images)
            right = self.logits(features).argmax(-1) == labels
            return self._losses(features, labels).double().cpu(), right.double().mean(1).cpu()

    def _losses(self, features: Tensor, labels: Tensor) -> Tensor:
        logits = self.logits(features)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return each.view(self.members, -1).mean(1)

    def _features(self, images: Tensor) -> Tensor:
        K, n = images.shape[:2]
        w = self.frozen | self.named
        S, d, L = self.shape.patches + 1, self.shape.d, self.shape.layers
        pieces = patches(images, self.shape)
        read = torch.baddbmm(w["embed_bias"], pieces.view(K, -1, pieces.shape[-1]), w["embed"])
        first = w["positions"][:, None]  # [K, 1, S, d]
        x = torch.cat([first[:, :, :1].expand(K, n, 1, d), read.view(K, n, S - 1, d) + first[:, :, 1:]], 2)
        for block in range(L):
            asks = 1 if block == L - 1 else S
            mixed = self._attention(F.layer_norm(x, (d,)).view(K, n * S, d), w, block, n, asks)
            x = (x[:, :, :asks].reshape(K, n * asks, d)) + torch.baddbmm(
                w[f"{block}.out_bias"], mixed, w[f"{block}.out"]
            )
            up = torch.baddbmm(w[f"{block}.up_bias"], F.layer_norm(x, (d,)), w[f"{block}.up"]).relu()
            x = (x + torch.baddbmm(w[f"{block}.down_bias"], up, w[f"{block}.down"])).view(K, n, asks, d)
        return F.layer_norm(x.view(K, n, d), (d,))

    def _attention(self, x: Tensor, w: dict[str, Tensor], block: int, n: int, asks: int) -> Tensor:
        """Return what the first `asks` tokens of every image gather from x [K, n·S, d], [K, n·asks, d]."""
        K, d, H, e = self.members, self.shape.d, self.shape.heads, self.shape.head_dim
        kind, qkv = self.adapter.kind, w[f"{block}.qkv"]
        S = self.shape.patches + 1
        first = x if asks == S else x.view(K, n, S, d)[:, :, :asks].reshape(K, n * asks, d)
        if asks == S:
            q, k, v = torch.bmm(x, qkv).split(d, 2)
        else:
            q = torch.bmm(first, qkv[:, :, :d])
            k, v = torch.bmm(x, qkv[:, :, d:]).split(d, 2)
        if kind == "lora":
            q = q + torch.bmm(torch.bmm(first, w[f"{block}.q_in"]), w[f"{block}.q_out"])
            v = v + torch.bmm(torch.bmm(x, w[f"{block}.v_in"]), w[f"{block}.v_out"])
        q, k, v = (t.view(K, n, -1, H, e).transpose(2, 3) for t in (q, k, v))  # [K, n, H, S, e]
        if kind == "prefix":
            mixed = prefix_attention(q, k, v, w[f"{block}.prefix_k"].unsqueeze(1), w[f"{block}.prefix_v"].unsqueeze(1))
        elif kind == "ntk":
            kappa = self._positive(w[f"{block}.kappa"])
            mixed = ntk_attention(q, k, v, self._phi, Folded(w[f"{block}.Z"].unsqueeze(1), kappa.unsqueeze(1)))
        else:
            mixed = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v))).unflatten(0, (K, n))
        return mixed.transpose(2, 3).reshape(K, n * asks, d)

    def _positive(self, kappa: Tensor) -> Tensor:
        return kappa.abs() if self.adapter.start == "zeros" else F.softplus(kappa)


def patches(images: Tensor, shape: Architecture) -> Tensor:
    """Return images [..., side²] as [..., patches, patch²], both in rows from the upper left."""
    count, p = shape.side // shape.patch, shape.patch
    return images.unflatten(-1, (count, p, count, p)).transpose(-3, -2).flatten(-2).flatten(-3, -2)


def first_values(shape: Architecture, adapter: Adapter, seeds: Sequence[int]) -> Tensor:
    """Return the first values of what is trained, [K, P] float32: the adapter's, then a head of zeros, one row per seed.

    Members draw from the streams ("vit", seed, name, shape), so a member's numbers depend on its seed, the
    architecture and the adapter alone. Raises ValueError for no seeds.
    """
    if not seeds:
        raise ValueError("a stack needs at least one member: pass one seed for each")
    layout = ({} if adapter.frozen else adapter_shapes(shape, adapter)) | _head_shapes(shape)

    def row(seed: int) -> Tensor:
        parts = [
            mean + std * normal(each, "vit", seed, name, each).flatten()
            if std
            else torch.full((math.prod(each),), mean)
            for name, (each, mean, std) in layout.items()
        ]
        return torch.cat([part.to(torch.float32) for part in parts])

    return torch.stack([row(seed) for seed in seeds])


def adapted(shape: Architecture, adapter: Adapter, pretrained: Tensor, seeds: Sequence[int]) -> StackedViT:
    """Return networks at the start of fine-tuning: `pretrained` [K, W + head] with an adapter drawn from the seeds.

    The head begins where pre-training left it. Raises ValueError for another number of seeds than rows.
    """
    if len(seeds) != len(pretrained):
        raise ValueError(f"{len(pretrained)} pre-trained networks need as many seeds, got {len(seeds)}")
    if adapter.kind == "full":
        return StackedViT(shape, adapter, None, pretrained.clone())
    weights, head = pretrained.split([shape.weights, pretrained.shape[1] - shape.weights], 1)
    trained = first_values(shape, adapter, seeds).to(pretrained)
    trained[:, -head.shape[1] :] = head
    return StackedViT(shape, adapter, weights.contiguous(), trained)


def train(
    model: StackedViT,
    images: Tensor,
    labels: Tensor,
    steps: int,
    *,
    batch: int,
    rates: Tensor | float,
    data_seeds: Sequence[int],
) -> None:
    """Train every member in place by AdamW with warm-up and cosine decay, without weight decay.

    images [K, N, side²], labels [K, N]; batches are drawn without replacement in an order that depends on the data seed
    alone. Features that do not move are computed once. Raises ValueError as `Batches` and `StackedAdamW` do.
    """
    seen = images if model.adapter.moves else model.features(images)
    batches = Batches(seen, labels.unsqueeze(-1), batch, steps, data_seeds)
    adam = StackedAdamW(model.trained, rates, betas=(0.9, 0.999))
    gradients = torch.empty_like(model.trained)
    parts = [
        (rows, model.narrow(rows.start, rows.stop - rows.start))
        for rows in chunks(model.members, model.members_at_a_time(batch))
    ]
    for step in range(steps):
        x, y = batches[step]
        for rows, part in parts:
            part.gradients(x[rows], y[rows, :, 0], out=gradients[rows])
        adam.step(gradients, schedule(step, steps))
