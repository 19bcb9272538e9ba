"""Prefixes, folded prefixes and low-rank updates for the models of the `transformers` library, which is optional.

Attention layers of that library call a function that their configuration names, so that one registered function serves
them all: the layers stay as they are and get one submodule more, `adapter`, that the function finds on its layer.

Sources: Liang et al. 2024, arXiv 2406.14036 (NTK-Attention); Liu et al. 2022, arXiv 2110.07602 (P-Tuning v2);
Hu et al. 2022, arXiv 2106.09685 (LoRA).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from theory.ensemble import normal
from theory.ntk_attention.features import Elu1, FeatureMap
from theory.ntk_attention.layer import FoldedPrefix, Positive

Kind = Literal["head", "full", "lora", "prefix", "ntk"]
NAME = "assay_prefix"
"""The name under which the attention function is registered."""
QUERIES, KEYS, VALUES = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
"""What attention layers call their projections."""


class TrainedPrefix(nn.Module):
    """P-Tuning v2: keys K and values V [H, m, d] of m prefix rows in one layer, drawn from N(0, 1).

    That is how the embedding tables begin in which the published code keeps them. Raises ValueError for m < 1.
    """

    def __init__(self, heads: int, m: int, d_k: int, d_v: int, *name: int | str, device: torch.device) -> None:
        super().__init__()
        if m < 1:
            raise ValueError(f"a prefix needs at least one row, got size = {m}")
        self.K, self.V = (
            nn.Parameter(normal((heads, m, d), "prefix", side, *name, dtype=torch.float32, device=device))
            for side, d in (("K", d_k), ("V", d_v))
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, mask: Tensor | None, scale: float | None
    ) -> Tensor:
        """Return exact prefix attention; q [B, H, g, L, d], k and v [B, H, 1, L, d]; the mask concerns k alone."""
        B, H, g, L, _ = q.shape
        m, S = self.K.shape[1], k.shape[-2]
        if causal:
            mask = torch.ones(L, S, dtype=torch.bool, device=q.device).tril()
        if mask is not None:  # the prefix is visible to every position
            seen = torch.ones if mask.dtype == torch.bool else torch.zeros
            mask = torch.cat([seen(*mask.shape[:-1], m, dtype=mask.dtype, device=mask.device), mask], -1)
            mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
            mask = mask.flatten(1, 2) if mask.dim() == 5 else mask
        keys, values = (
            torch.cat([own.to(x.dtype).unsqueeze(1).expand(B, H, 1, m, -1), x], -2)
            .expand(B, H, g, m + S, -1)
            .flatten(1, 2)
            for own, x in ((self.K, k), (self.V, v))
        )
        out = scaled_dot_product_attention(q.flatten(1, 2), keys, values, attn_mask=mask, scale=scale)
        return out.unflatten(1, (H, g))


class LowRank(nn.Module):
    """LoRA: a frozen linear map plus B A of rank r; A is N(0, 1/d_in) at first and B zero. ValueError for r < 1."""

    def __init__(self, base: nn.Linear, rank: int, *name: int | str) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"a low-rank update needs a rank of at least 1, got size = {rank}")
        self.base, device = base, base.weight.device
        A = normal((rank, base.in_features), "lora", *name, dtype=torch.float32, device=device)
        self.A = nn.Parameter(A * base.in_features**-0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of x [..., d_in], [..., d_out], in the precision of the frozen map."""
        plain = self.base(x)
        return plain + linear(linear(x.to(self.A.dtype), self.A), self.B).to(plain.dtype)


def adapt(
    model: nn.Module,
    kind: Kind,
    size: int = 0,
    *,
    seed: int = 0,
    phi: Callable[[int], FeatureMap] = Elu1,
    positive: Positive = "softplus",
    start: float | None = None,
    dropout: float = 0.0,
) -> dict[str, nn.Parameter]:
    """Freeze a model of the transformers library but for what `kind` trains; return that by name.

    kind   "head": nothing; "full": everything; "lora": updates of rank `size` of every query and value map; "prefix":
           `size` trained keys and values per layer and key-value head (P-Tuning v2); "ntk": Z and kappa per layer and
           key-value head, with the feature map phi(d), and `positive`, `start` and `dropout` as in `FoldedPrefix`
    seed   of what is drawn: prefixes and the first factors of updates

    Queries that share a key share its prefix, as a real prefix would make them. The prefix has no position and is
    visible to every token, under causal masks too. With "lora", and with "ntk" and positive = "abs", the model returns
    the same as before; with "ntk" and "softplus" nearly so (see `FoldedPrefix`); no "prefix" starts neutral.

    Raises ImportError without the library, ValueError for an unknown kind, a model that was adapted before, and layers
    that this cannot adapt: no projections of its own for queries, keys and values, no functional attention.
    """
    if kind not in ("head", "full", "lora", "prefix", "ntk"):
        raise ValueError(f"kind = {kind!r}: choose 'head', 'full', 'lora', 'prefix' or 'ntk'")
    if any(isinstance(module, (FoldedPrefix, TrainedPrefix, LowRank)) for module in model.modules()):
        raise ValueError("the model has adapters already: load it again")
    layers = _layers(model) if kind in ("lora", "prefix", "ntk") else []
    model.requires_grad_(kind == "full")
    if kind in ("prefix", "ntk"):
        _use_registered(model)
    for index, layer in enumerate(layers):
        if kind == "lora":
            for side, names in (("query", QUERIES), ("value", VALUES)):
                name = next(name for name in names if hasattr(layer, name))
                setattr(layer, name, LowRank(getattr(layer, name), size, side, index, seed))
            continue
        heads, d_k, d_v = _shape(layer)
        device = next(layer.parameters()).device
        if kind == "prefix":
            layer.adapter = TrainedPrefix(heads, size, d_k, d_v, index, seed, device=device)
        else:
            layer.adapter = FoldedPrefix(
                phi(d_k), heads, d_v, positive=positive, start=start, dropout=dropout, device=device
            )
        layer.adapter.train(layer.training)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def largest_kappa(model: nn.Module) -> float:
    """Return the largest entry of any kappa in an adapted model, 0 if it has none."""
    found = [float(m.kappa.detach().max()) for m in model.modules() if isinstance(m, FoldedPrefix)]
    return max(found, default=0.0)


def transformers_library() -> Any:
    """Return the module `transformers`; ImportError that says what to install if there is none."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("pre-trained models need the transformers library: pip install 'assay[models]'") from error
    return transformers


def _use_registered(model: nn.Module) -> None:
    library = transformers_library()
    from transformers.masking_utils import sdpa_mask

    library.AttentionInterface.register(NAME, _attention)
    library.AttentionMaskInterface.register(NAME, sdpa_mask)
    if not isinstance(model, library.PreTrainedModel) or not model._can_set_attn_implementation():
        raise ValueError(f"{type(model).__name__} has no attention whose function can be chosen: it cannot be adapted")
    model.set_attn_implementation(NAME)


def _attention(
    layer: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as the library's own functions do: query [B, H, L, d], key and value [B, H_kv, S, d] to [B, L, H, d]."""
    adapter = getattr(layer, "adapter", None)
    if adapter is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            layer, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **options
        )
    unknown = [name for name in ("softcap", "position_bias", "s_aux") if options.get(name) is not None]
    if dropout or unknown:
        what = f"attention dropout of {dropout}" if dropout else f"the attention option {unknown[0]!r}"
        raise ValueError(f"{type(layer).__name__} uses {what}, which an adapted layer does not support")
    H, L = query.shape[1:3]
    Hkv, S = key.shape[1:3]
    causal_layer = getattr(layer, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal_layer) and attention_mask is None and L > 1
    if causal and S > L:  # an empty cache of fixed length: what lies beyond is not filled
        key, value = key[:, :, :L], value[:, :, :L]
    mask = attention_mask
    if mask is not None:  # [B, 1 or H, L, S]
        mask = mask.unsqueeze(2) if mask.shape[1] == 1 else mask.unflatten(1, (Hkv, H // Hkv))
    grouped = query.unflatten(1, (Hkv, H // Hkv))
    out = adapter(grouped, key.unsqueeze(2), value.unsqueeze(2), causal=causal, mask=mask, scale=scaling)
    return out.flatten(1, 2).transpose(1, 2).contiguous(), None


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the attention layers of a model in order; ValueError if there are none with projections of their own."""

    def projects(module: nn.Module) -> bool:
        every = (QUERIES, KEYS, VALUES)
        return all(any(isinstance(getattr(module, name, None), nn.Linear) for name in names) for names in every)

    found = [module for module in model.modules() if projects(module)]
    if not found:
        names = ", ".join(f"{query}/{value}" for query, value in zip(QUERIES, VALUES, strict=True))
        raise ValueError(f"{type(model).__name__} has no attention layers with linear query and value maps ({names})")
    return found


def _shape(layer: nn.Module) -> tuple[int, int, int]:
    """Return the key-value heads of an attention layer and the dimensions of its keys and values."""
    d = getattr(layer, "head_dim", None) or getattr(layer, "attention_head_size", None)
    keys, values = (
        next(getattr(layer, name).out_features for name in names if hasattr(layer, name)) for names in (KEYS, VALUES)
    )
    if not isinstance(d, int) or keys % d:
        raise ValueError(f"{type(layer).__name__} does not say the dimension of its heads: it cannot be adapted")
    return keys // d, d, values // (keys // d)
