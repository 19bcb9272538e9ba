"""Attention with a prefix: exact, or with the prefix folded into (Z, kappa) of a size that does not depend on it.

    prefix attention   softmax(scale Q [K_P; K]^T) [V_P; V]
    NTK-Attention      T_i = (sum_j e^{t_ij} v_j + Z^T phi(q_i)) / (sum_j e^{t_ij} + phi(q_i) . kappa)
    folding            Z = sum_r phi(k_r) v_r^T,  kappa = sum_r phi(k_r)

with t_ij = scale q_i . k_j and phi on vectors multiplied by sqrt(scale) (Liang et al., arXiv 2406.14036, section 4 and
Algorithm 1). Leading axes are batch axes and broadcast. Half precision is computed in float32, but for the fused kernel
of `prefix_attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from theory.ntk_attention.features import FeatureMap

_BLOCK_ENTRIES = 2**25  # features of one block of prefix rows held at a time: 256 MiB in float64


@dataclass(frozen=True)
class Folded:
    """A prefix of any length, folded: Z [..., r, d_v] and kappa [..., r]. Prefixes of one map are merged by `+`.

    Raises ValueError if the two do not agree on r.
    """

    Z: Tensor
    kappa: Tensor

    def __post_init__(self) -> None:
        if self.Z.dim() < 2 or self.kappa.dim() < 1 or self.Z.shape[-2] != self.kappa.shape[-1]:
            raise ValueError(
                f"Z of shape {tuple(self.Z.shape)} and kappa of shape {tuple(self.kappa.shape)} do not fit: "
                "they must be [..., r, d_v] and [..., r] with the same number r of features"
            )

    def __add__(self, other: Folded) -> Folded:
        if not isinstance(other, Folded):
            return NotImplemented
        if self.Z.shape[-2:] != other.Z.shape[-2:]:
            raise ValueError(f"cannot merge a prefix with Z {tuple(self.Z.shape)} and one with {tuple(other.Z.shape)}")
        return Folded(self.Z + other.Z, self.kappa + other.kappa)


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    fused: bool = True,
) -> Tensor:
    """Return exact prefix attention [..., L, d_v]: every query sees the whole prefix; `causal` masks k only.

    q, k, v are [..., L, d], prefix_k and prefix_v [..., m, d]; `scale` is d^(-1/2) unless given; `fused=False` takes
    explicit matrix products, for example to count them.
    Raises ValueError for a non-positive scale, or a causal call with unequal lengths.
    """
    scale = _scale(q, scale)
    lead = _lead(q, k, v, prefix_k, prefix_v)
    keys = torch.cat([prefix_k.expand(*lead, -1, -1), k.expand(*lead, -1, -1)], dim=-2)
    values = torch.cat([prefix_v.expand(*lead, -1, -1), v.expand(*lead, -1, -1)], dim=-2)
    mask = None
    if causal:
        visible = torch.ones(q.shape[-2], prefix_k.shape[-2], dtype=torch.bool, device=q.device)
        mask = torch.cat([visible, _causal(q, k)], dim=-1)
    if not fused:
        _, mass, weighted = _key_part(q, keys, values, False, mask, scale)
        return (weighted / mass).to(q.dtype)
    return scaled_dot_product_attention(q.expand(*lead, -1, -1), keys, values, attn_mask=mask, scale=scale)


def fold(
    phi: FeatureMap, prefix_k: Tensor, prefix_v: Tensor, *, block: int = 4096, scale: float | None = None
) -> Folded:
    """Return (Z, kappa) of a prefix with keys [..., m, d] and values [..., m, d_v], read `block` rows at a time.

    Blocks shrink where a map has many features, so that the memory beside the prefix stays bounded for any m.
    Half precision is summed in float32. Raises ValueError for a block below 1 or keys and values of unequal length.
    """
    if block < 1:
        raise ValueError(f"block = {block} must be positive")
    m = prefix_k.shape[-2]
    if prefix_v.shape[-2] != m:
        raise ValueError(f"{m} prefix keys and {prefix_v.shape[-2]} prefix values do not fit")
    dtype = _working(prefix_k, prefix_v)
    root = math.sqrt(_scale(prefix_k, scale))
    lead = _lead(prefix_k, prefix_v)
    rows = max(1, min(block, _BLOCK_ENTRIES // (phi.size * max(1, math.prod(lead)))))
    Z = prefix_v.new_zeros(*lead, phi.size, prefix_v.shape[-1], dtype=dtype)
    kappa = prefix_k.new_zeros(*prefix_k.shape[:-2], phi.size, dtype=dtype)
    for keys, values in zip(prefix_k.split(rows, dim=-2), prefix_v.split(rows, dim=-2), strict=True):
        features = phi(keys.to(dtype) * root)
        Z = Z + features.mT @ values.to(dtype)
        kappa = kappa + features.sum(-2)
    return Folded(Z, kappa)


def ntk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi: FeatureMap,
    folded: Folded,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    fused: bool = True,
) -> Tensor:
    """Return NTK-Attention [..., L, d_v] in q's precision; with Z = 0 and kappa = 0 it is plain attention.

    `mask` (boolean, True where visible, or added to the logits) and `causal` concern k alone, broadcast to
    [..., L, L_k]; a query that sees no key attends to the prefix alone. Where no gradient is needed and there is no
    mask, a fused kernel does the part of k; `fused=False` always takes explicit matrix products, for example to count
    them. Denominators are not kept positive here: see `nonpositive_denominators`.
    Raises ValueError for a non-positive scale, a causal call with unequal lengths, or a map of another size.
    """
    _sizes(phi, folded)
    scale = _scale(q, scale)
    if fused and mask is None and _no_gradient(q, k, v, folded.Z, folded.kappa):
        plain = _fused_attention(q, k, v, causal, scale)
        if plain is not None:
            return _blend(*plain, *_prefix_part(q, phi, folded, scale)).to(q.dtype)
    top, mass, weighted = _key_part(q, k, v, causal, mask, scale)
    numerator, prefix = _prefix_part(q, phi, folded, scale)
    # Both parts are divided by exp(c): with c = max(top, 0) no weight can overflow.
    c = top.clamp(min=0)
    ours, theirs = torch.exp((top - c).clamp(min=_floor(top.dtype))), torch.exp(-c)
    return ((ours * weighted + theirs * numerator) / (ours * mass + theirs * prefix)).to(q.dtype)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return attention without a prefix [..., L, d_v] and the logarithm of its denominators, log sum_j e^{t_j} [..., L].

    Both are at least float32. Raises ValueError for a non-positive scale, or a causal call with unequal lengths.
    """
    scale = _scale(q, scale)
    found = _fused_attention(q, k, v, causal, scale) if _no_gradient(q, k, v) else None
    if found is None:
        top, mass, weighted = _key_part(q, k, v, causal, None, scale)
        found = weighted / mass, top + mass.log()
    return found[0], found[1].squeeze(-1)


def prefix_mass(q: Tensor, phi: FeatureMap, folded: Folded, *, scale: float | None = None) -> Tensor:
    """Return phi(q) . kappa [..., L], what stands for the prefix's sum of exponentials; it may be negative."""
    _sizes(phi, folded)
    dtype = _working(q, folded.kappa)
    features = phi(q.to(dtype) * math.sqrt(_scale(q, scale)))
    return (features @ folded.kappa.to(dtype).unsqueeze(-1)).squeeze(-1)


def nonpositive_denominators(
    q: Tensor,
    k: Tensor,
    phi: FeatureMap,
    folded: Folded,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return where the denominator of `ntk_attention` is zero or negative, [..., L] of bool.

    A Taylor map of odd degree is negative for logits well below -1, so its outputs may then mean nothing.
    """
    top, mass, _ = _key_part(q, k, k, causal, mask, _scale(q, scale))
    c = top.clamp(min=0)
    ours = torch.exp((top - c).clamp(min=_floor(top.dtype))) * mass
    return (ours + torch.exp(-c) * prefix_mass(q, phi, folded, scale=scale).unsqueeze(-1)).squeeze(-1) <= 0


def _prefix_part(q: Tensor, phi: FeatureMap, folded: Folded, scale: float) -> tuple[Tensor, Tensor]:
    """Return Z^T phi(q) [..., L, d_v] and phi(q) . kappa [..., L, 1], in the precision of the whole computation."""
    dtype = _working(q, folded.Z, folded.kappa)
    features = phi(q.to(dtype) * math.sqrt(scale))
    return features @ folded.Z.to(dtype), features @ folded.kappa.to(dtype).unsqueeze(-1)


def _key_part(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (top, sum_j e^{t_j - top}, sum_j e^{t_j - top} v_j); top [..., L, 1] is detached, and 0 if all is masked."""
    dtype = _working(q, k, v)
    scores = (q.to(dtype) * scale) @ k.to(dtype).mT  # [..., L, L_k]
    if causal:
        scores = scores.masked_fill(~_causal(q, k), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(dtype)
    top = scores.detach().amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)
    weights = torch.exp(scores - top)
    return top, weights.sum(-1, keepdim=True), weights @ v.to(dtype)


def _blend(plain: Tensor, lse: Tensor, numerator: Tensor, mass: Tensor) -> Tensor:
    """Return (e^lse plain + numerator) / (e^lse + mass), in place where it can: fresh memory costs more than arithmetic.

    plain and numerator are [..., L, d_v], lse and mass [..., L, 1]. As in the explicit path both parts are divided by
    exp(max(lse, 0)); the share of `plain` is exactly 1 where the prefix has no mass.
    """
    c = lse.clamp(min=0)
    ours, theirs = torch.exp((lse - c).clamp(min=_floor(lse.dtype))), torch.exp(-c)
    denominator = torch.addcmul(ours, theirs, mass)
    ours, theirs = ours / denominator, theirs / denominator
    if numerator.shape == plain.shape and theirs.shape[:-1] == plain.shape[:-1]:
        return plain.mul_(ours).addcmul_(numerator, theirs)
    return torch.addcmul(plain * ours, numerator, theirs)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor] | None:
    """Return (plain attention, log-sum-exp [..., L, 1]) from the device's kernel, or None where there is none."""
    if not q.shape[-1] == k.shape[-1] == v.shape[-1] or not q.dtype == k.dtype == v.dtype:
        return None
    if causal:
        _same_length(q, k)
    lead = _lead(q, k, v)
    q4, k4, v4 = (_four_axes(x, lead) for x in (q, k, v))
    aten = torch.ops.aten
    half = q.dtype in (torch.float16, torch.bfloat16)
    if q.device.type == "cpu" and (half or q.dtype in (torch.float32, torch.float64)):
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q4, k4, v4, 0.0, causal, scale=scale)
    elif q.device.type == "cuda" and half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256:
        out, lse = aten._scaled_dot_product_flash_attention(q4, k4, v4, 0.0, causal, False, scale=scale)[:2]
    elif q.device.type == "cuda" and q.dtype == torch.float32 and q.shape[-1] % 4 == 0:
        out, lse = aten._scaled_dot_product_efficient_attention(q4, k4, v4, None, True, 0.0, causal, scale=scale)[:2]
    else:
        return None
    lengths = q.shape[-2]
    out = out.reshape(*lead, lengths, v.shape[-1])
    return out.to(_working(q)), lse[..., :lengths].reshape(*lead, lengths, 1).to(_working(q))


def _lead(*tensors: Tensor) -> torch.Size:
    """Return the leading axes that all broadcast to; torch's own function takes longer than small attention."""
    leads = {x.shape[:-2] for x in tensors}
    return leads.pop() if len(leads) == 1 else torch.broadcast_shapes(*leads)


def _four_axes(x: Tensor, lead: torch.Size) -> Tensor:
    """Return x with its leading axes made two, as the kernels want them, and its last axis dense."""
    x = x.expand(*lead, -1, -1)
    x = x if len(lead) == 2 else x.reshape(1, -1, *x.shape[-2:])
    return x if x.stride(-1) == 1 else x.contiguous()


def _no_gradient(*tensors: Tensor) -> bool:
    if torch._C._functorch.peek_interpreter_stack() is not None:  # grad, jvp, vmap: the kernels know none of them
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


def _causal(q: Tensor, k: Tensor) -> Tensor:
    _same_length(q, k)
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()


def _same_length(q: Tensor, k: Tensor) -> None:
    if q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal attention needs as many queries as keys, not {q.shape[-2]} and {k.shape[-2]}")


def _sizes(phi: FeatureMap, folded: Folded) -> None:
    if folded.kappa.shape[-1] != phi.size:
        raise ValueError(f"the prefix was folded with {folded.kappa.shape[-1]} features, but {phi!r} has {phi.size}")


def _scale(q: Tensor, scale: float | None) -> float:
    if scale is None:
        return q.shape[-1] ** -0.5
    if not scale > 0:
        raise ValueError(f"scale = {scale} must be positive: the feature maps take its square root")
    return scale


def _working(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def _floor(dtype: torch.dtype) -> float:
    """Return the least exponent whose exponential is still a normal number with room for a few more factors."""
    return math.log(torch.finfo(dtype).tiny) + 7.0
