"""NTK-Attention as a layer: a prefix of any length as r d + r trainable numbers per head, beside frozen projections.

Source: Liang et al. 2024, arXiv 2406.14036, section 4 and Algorithm 1 (NTK-Attention).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theory.ntk_attention.attention import Folded, fold, ntk_attention
from theory.ntk_attention.features import Elu1, FeatureMap, Taylor

Positive = Literal["softplus", "abs", "free"]
STARTS: dict[Positive, float] = {"softplus": -4.0, "abs": 0.0, "free": 0.0}
"""What `raw` is at first: softplus(-4) = 0.018; zeros as in the published code; the original layer exactly."""


class FoldedPrefix(nn.Module):
    """Z [H, r, d_v] and kappa [H, r] of one attention layer, trainable, and attention with them.

    kappa is a function of the parameter `raw`, for phi . kappa must stay positive wherever phi is positive:
        "softplus"  log(1 + e^raw)
        "abs"       |raw|, as in the published code, for comparison: it starts at 0, where the gradient of | | that
                    torch takes is 0 as well, so that kappa never leaves 0 and Z alone is trained
        "free"      raw itself, for maps whose features have signs (Taylor): there a positive kappa would not help
    Z is 0 at first, so that a token's output is what it was without the layer's prefix, times 1 / (1 + s) with the share
    s = phi(q) . kappa / sum_j e^{t_j}: exactly the original for "abs" and "free", near it for "softplus" (`start` says
    how near; a smaller start is nearer and slower to leave).

    `dropout` acts on phi(q) while training, never at evaluation. Parameters are float32, or float64 if dtype says so.
    Raises ValueError for an unknown `positive` and a dropout outside [0, 1).
    """

    def __init__(
        self,
        phi: FeatureMap,
        heads: int,
        d_v: int,
        *,
        positive: Positive = "softplus",
        start: float | None = None,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if positive not in STARTS:
            raise ValueError(f"positive = {positive!r}: choose 'softplus', 'abs' or 'free'")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout} must lie in [0, 1)")
        self.phi, self.positive, self.dropout = phi, positive, dropout
        dtype = torch.promote_types(dtype, torch.float32)  # adapters in half precision would not learn small steps
        self.Z = nn.Parameter(torch.zeros(heads, phi.size, d_v, dtype=dtype, device=device))
        start = STARTS[positive] if start is None else start
        self.raw = nn.Parameter(torch.full((heads, phi.size), start, dtype=dtype, device=device))

    @property
    def kappa(self) -> Tensor:
        """The numbers kappa as attention uses them, [H, r]."""
        if self.positive == "softplus":
            return F.softplus(self.raw)
        return self.raw.abs() if self.positive == "abs" else self.raw

    @torch.no_grad()
    def assign(self, folded: Folded) -> None:
        """Make Z and kappa those of a folded prefix; ValueError if they do not fit or a kappa that must be is not > 0."""
        if folded.Z.shape != self.Z.shape or folded.kappa.shape != self.raw.shape:
            raise ValueError(
                f"a folded prefix with Z {tuple(folded.Z.shape)} and kappa {tuple(folded.kappa.shape)} does not fit "
                f"{tuple(self.Z.shape)} and {tuple(self.raw.shape)}"
            )
        kappa = folded.kappa.to(torch.float64)
        if self.positive != "free" and not bool((kappa > 0).all()):
            raise ValueError(f"kappa has entries ≤ 0, which positive = {self.positive!r} cannot hold: take 'free'")
        if self.positive == "softplus":
            kappa = kappa + torch.log(-torch.expm1(-kappa))
        self.Z.copy_(folded.Z)
        self.raw.copy_(kappa)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """Return NTK-Attention in q's precision, as `ntk_attention` does, computed in float32 even under autocast.

        q is [B, H, L, d], or [B, H, g, L, d] where g queries share a key; k, v and `mask` must broadcast against it.
        """
        return self._attend(q, k, v, self.Z, causal, mask, scale)

    def parts(
        self, q: Tensor, k: Tensor, *, causal: bool = False, mask: Tensor | None = None, scale: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the weights of the tokens themselves, [..., L, L_k], and what the prefix adds to outputs, [..., L, d_v].

        The weights lack the prefix's share to 1. Both come from one draw of dropped features.
        """
        tokens = k.shape[-2]
        one_hot = torch.eye(tokens, dtype=q.dtype, device=q.device)
        values = F.pad(one_hot, (0, self.Z.shape[-1]))
        both = self._attend(q, k, values, F.pad(self.Z, (tokens, 0)), causal, mask, scale)
        return both[..., :tokens], both[..., tokens:]

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, Z: Tensor, causal: bool, mask: Tensor | None, scale: float | None
    ) -> Tensor:
        kappa = self.kappa
        if q.dim() == 5:
            Z, kappa = Z.unsqueeze(1), kappa.unsqueeze(1)
        phi = _Dropped(self.phi, self.dropout) if self.training and self.dropout else self.phi
        with torch.autocast(q.device.type, enabled=False):
            return ntk_attention(q, k, v, phi, Folded(Z, kappa), causal=causal, mask=mask, scale=scale)


@dataclass(frozen=True)
class _Dropped:
    """A feature map whose features are dropped with probability p; the others grow by 1/(1 - p)."""

    phi: FeatureMap
    p: float

    @property
    def size(self) -> int:
        return self.phi.size

    def __call__(self, x: Tensor) -> Tensor:
        return F.dropout(self.phi(x), self.p)


class NTKAttention(nn.Module):
    """Stands in for a `torch.nn.MultiheadAttention` in self-attention, and adds a folded prefix to it.

    Takes and returns what the wrapped module does (batch_first or not, unbatched, both masks, `is_causal` also without
    a mask), inside `nn.TransformerEncoderLayer` too, whose fused inference path it switches off. The weights returned
    with `need_weights` are those of the tokens: they sum to 1 minus the prefix's share. The wrapped dropout on
    attention weights goes on acting on the tokens' weights while training.

    The wrapped parameters are frozen unless `frozen` is False, which leaves them as they are. phi is ELU + 1 of the head
    dimension by default; `positive`, `start` and `dropout` are explained at `FoldedPrefix`. Raises ValueError for
    attention that has extra keys (add_bias_kv, add_zero_attn) or keys and values of other dimensions.
    """

    _qkv_same_embed_dim = False  # tells torch's encoder layers to call forward instead of their fused kernel

    def __init__(
        self,
        attention: nn.MultiheadAttention,
        *,
        phi: FeatureMap | None = None,
        positive: Positive = "softplus",
        start: float | None = None,
        dropout: float = 0.0,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                "attention with add_bias_kv or add_zero_attn cannot be wrapped: its extra keys would be lost"
            )
        if attention.in_proj_weight is None:
            raise ValueError(
                f"attention with kdim = {attention.kdim} and vdim = {attention.vdim} beside embed_dim = "
                f"{attention.embed_dim} is no self-attention and cannot be wrapped"
            )
        self.attention = attention.requires_grad_(False) if frozen else attention
        weight = attention.in_proj_weight
        self.prefix = FoldedPrefix(
            phi or Elu1(attention.head_dim),
            attention.num_heads,
            attention.head_dim,
            positive=positive,
            start=start,
            dropout=dropout,
            dtype=weight.dtype,
            device=weight.device,
        )
        self.train(attention.training)

    @classmethod
    def from_prefix(
        cls,
        attention: nn.MultiheadAttention,
        prefix: Tensor,
        *,
        phi: FeatureMap | None = None,
        positive: Positive | None = None,
        block: int = 4096,
        dropout: float = 0.0,
        frozen: bool = True,
    ) -> NTKAttention:
        """Return the layer that stands for attention with the rows `prefix` [m, d_model] before every sequence.

        The prefix is projected and folded `block` rows at a time, so that m may be any number; afterwards it is not
        needed. The result is prefix attention up to the error of phi, which is no approximation of exp for ELU + 1.
        kappa is "free" for Taylor maps and "softplus" otherwise unless `positive` says what. Raises ValueError for a
        prefix of another width.
        """
        if prefix.dim() != 2 or prefix.shape[1] != attention.embed_dim or not len(prefix):
            raise ValueError(f"prefix must be rows of {attention.embed_dim} numbers, got {tuple(prefix.shape)}")
        phi = phi or Elu1(attention.head_dim)
        positive = positive or ("free" if isinstance(phi, Taylor) else "softplus")
        layer = cls(attention, phi=phi, positive=positive, dropout=dropout, frozen=frozen)
        with torch.no_grad():
            folded = None
            for rows in prefix.split(block):
                _, k, v = layer._project(rows.to(attention.in_proj_weight).unsqueeze(0))
                part = fold(phi, k[0], v[0], block=block)
                folded = part if folded is None else folded + part
        assert folded is not None
        layer.prefix.assign(folded)
        return layer

    @property
    def batch_first(self) -> bool:
        """As the wrapped module's."""
        return self.attention.batch_first

    @property
    def num_heads(self) -> int:
        """As the wrapped module's."""
        return self.attention.num_heads

    @property
    def embed_dim(self) -> int:
        """As the wrapped module's."""
        return self.attention.embed_dim

    @property
    def in_proj_weight(self) -> Tensor:
        """As the wrapped module's."""
        return self.attention.in_proj_weight

    @property
    def in_proj_bias(self) -> Tensor | None:
        """As the wrapped module's."""
        return self.attention.in_proj_bias

    @property
    def out_proj(self) -> nn.Module:
        """As the wrapped module's."""
        return self.attention.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs and weights (or None), of shapes and with masks as in `nn.MultiheadAttention.forward`.

        Raises ValueError unless query, key and value are one tensor, dense, and the masks fit it.
        """
        if query is not key or key is not value:
            raise ValueError("NTK-Attention is self-attention: query, key and value must be the same tensor")
        if query.is_nested:
            raise ValueError(
                "nested tensors are not supported: set use_nested_tensor = False on the TransformerEncoder"
            )
        batched = query.dim() == 3
        x = query if batched else query.unsqueeze(0)
        x = x.transpose(0, 1) if batched and not self.batch_first else x
        q, k, v = self._project(x)
        mask = self._mask(x, key_padding_mask, attn_mask)
        causal, weights = is_causal and attn_mask is None, None
        dropped = self.attention.dropout if self.training else 0.0
        if need_weights or dropped:
            weights, of_prefix = self.prefix.parts(q, k, causal=causal, mask=mask)
            weights = F.dropout(weights, dropped)
            heads = weights @ v + of_prefix
        else:
            heads = self.prefix(q, k, v, causal=causal, mask=mask)
        out = self.attention.out_proj(heads.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            out, weights = out[0], None if weights is None else weights[0]
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return out, weights if need_weights else None

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [B, H, L, d] of tokens x [B, L, d_model]."""
        if x.shape[-1] != self.embed_dim:
            raise ValueError(f"tokens must have {self.embed_dim} entries, got {x.shape[-1]}")
        joined = F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias)
        q, k, v = joined.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _mask(self, x: Tensor, padding: Tensor | None, attention: Tensor | None) -> Tensor | None:
        """Merge what MultiheadAttention takes (True: ignore) into one mask (True: visible), or one to be added."""
        B, L = x.shape[:2]
        masks = []
        if padding is not None:
            if padding.numel() != B * L:
                raise ValueError(f"key_padding_mask must be {(B, L)}, got {tuple(padding.shape)}")
            masks.append(padding.view(B, 1, 1, L))
        if attention is not None:
            if attention.shape not in ((L, L), (B * self.num_heads, L, L)):
                raise ValueError(
                    f"attn_mask must be {(L, L)} or {(B * self.num_heads, L, L)}, got {tuple(attention.shape)}"
                )
            masks.append(attention if attention.dim() == 2 else attention.view(B, self.num_heads, L, L))
        if not masks:
            return None
        if all(mask.dtype == torch.bool for mask in masks):
            return ~masks[0] if len(masks) == 1 else ~(masks[0] | masks[1])
        return sum((_added(mask) for mask in masks), start=x.new_zeros((), dtype=torch.float32))


def _added(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -math.inf)
