from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from theory.ensemble import normal
from theory.ntk_attention.attention import Folded, prefix_attention
from theory.ntk_attention.features import Elu1, PositiveRandom, Taylor
from theory.ntk_attention.layer import FoldedPrefix, NTKAttention

F64 = torch.float64
D, H, L, B = 8, 2, 5, 3
d = D // H


def attention(dtype: torch.dtype = F64, **options) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    found = nn.MultiheadAttention(D, H, **{"batch_first": True} | options).eval()
    with torch.no_grad():
        for p in found.parameters():
            p += 0.3 * torch.randn_like(p)
    return found.to(dtype)


def tokens(*lead: int, dtype: torch.dtype = F64) -> Tensor:
    return normal((*lead, D), "tokens", dtype=dtype)


def heads(attention: nn.MultiheadAttention, x: Tensor) -> list[Tensor]:
    """Queries, keys and values [..., H, L, d], from the definition."""
    weights, biases = attention.in_proj_weight.split(D), attention.in_proj_bias.split(D)
    return [
        (x @ W.T + b).unflatten(-1, (H, d)).transpose(-2, -3).detach() for W, b in zip(weights, biases, strict=True)
    ]


def filled(layer: NTKAttention) -> NTKAttention:
    """The same with a Z and kappa that are no special values."""
    with torch.no_grad():
        layer.prefix.Z.copy_(normal(layer.prefix.Z.shape, "Z"))
        layer.prefix.raw.copy_(normal(layer.prefix.raw.shape, "raw"))
    return layer


def merged(out: Tensor, attention: nn.MultiheadAttention) -> Tensor:
    return attention.out_proj(out.transpose(-2, -3).flatten(-2))


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False, True] + [False] * 3])},
    "padding added": {"key_padding_mask": torch.tensor([[0.0] * 5, [0, 0, 0, -1, -math.inf], [1, 2, 0, 0, 0]])},
    "causal": {"attn_mask": torch.ones(L, L, dtype=torch.bool).triu(1), "is_causal": True},
    "per head": {"attn_mask": normal((B * H, L, L), "bias", dtype=torch.float32)},
    "both": {
        "attn_mask": torch.ones(L, L, dtype=torch.bool).triu(1),
        "key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]]),
    },
    "both added": {
        "attn_mask": torch.zeros(L, L).masked_fill(torch.ones(L, L).triu(1) > 0, -math.inf),
        "key_padding_mask": torch.tensor([[0.0] * 5, [0, 0, 0, 1, 2], [0, 0, 0, 0, -math.inf]]),
    },
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("average", [True, False])
def test_without_a_prefix_it_is_the_wrapped_attention(masks: dict, batch_first: bool, average: bool) -> None:
    """Z = 0 and kappa = 0: outputs and weights of `nn.MultiheadAttention`, under every mask that it takes."""
    wrapped = attention(batch_first=batch_first)
    layer = NTKAttention(wrapped, positive="free")
    x = tokens(B, L) if batch_first else tokens(B, L).transpose(0, 1)
    given = {
        name: mask.to(F64) if mask.is_floating_point() else mask for name, mask in masks.items() if name != "is_causal"
    }
    causal = {"is_causal": True} if "is_causal" in masks else {}
    expected = wrapped(x, x, x, **given, **causal, average_attn_weights=average)
    found = layer(x, x, x, **given, **causal, average_attn_weights=average)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    silent = layer(x, x, x, **given, **causal, need_weights=False)
    assert silent[1] is None
    torch.testing.assert_close(silent[0], expected[0], rtol=1e-12, atol=1e-12)


def test_unbatched_sequences_and_a_causal_hint_without_a_mask() -> None:
    wrapped = attention()
    layer, x = NTKAttention(wrapped, positive="abs"), tokens(L)
    triangle = torch.ones(L, L, dtype=torch.bool).triu(1)
    for a, b in zip(layer(x, x, x, is_causal=True), wrapped(x, x, x, attn_mask=triangle), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    x, padding = tokens(B, L), MASKS["padding"]["key_padding_mask"]
    found = layer(x, x, x, padding, is_causal=True, need_weights=False)[0]
    expected = wrapped(x, x, x, padding, attn_mask=triangle, need_weights=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_neutral_start_shrinks_outputs_by_the_share_it_says() -> None:
    """Z = 0: the output is that without a prefix times 1 / (1 + s), s = phi(q) . kappa / sum_j exp(t_j)."""
    wrapped = attention()
    q, k, v = heads(wrapped, tokens(B, L))
    t = q @ k.mT / math.sqrt(d)
    share = softplus(-4.0) * Elu1(d)(q * d**-0.25).sum(-1) / t.exp().sum(-1)
    expected = merged((torch.softmax(t, -1) @ v) / (1 + share.unsqueeze(-1)), wrapped)
    layer, x = NTKAttention(wrapped), tokens(B, L)
    assert layer.prefix.Z.abs().max() == 0
    torch.testing.assert_close(layer(x, x, x)[0], expected, rtol=1e-12, atol=1e-12)
    near, plain = NTKAttention(wrapped, start=-30.0)(x, x, x)[0], wrapped(x, x, x)[0]
    torch.testing.assert_close(near, plain, rtol=1e-10, atol=1e-10)
    weights = layer(x, x, x)[1]
    torch.testing.assert_close(weights.sum(-1), (1 / (1 + share)).mean(1), rtol=1e-12, atol=1e-12)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("m", [1, 7, 300])
def test_made_from_a_prefix_it_is_attention_with_that_prefix(m: int) -> None:
    """With a Taylor map of high degree, as long as logits are small; the prefix may be folded in blocks of any size."""
    wrapped, prefix, x = attention(), 0.3 * normal((m, D), "prefix"), 0.3 * tokens(B, L)
    q, k, v = heads(wrapped, x)
    _, prefix_k, prefix_v = heads(wrapped, prefix)
    assert float((q @ prefix_k.mT).abs().max()) / math.sqrt(d) < 2
    expected = merged(prefix_attention(q, k, v, prefix_k, prefix_v), wrapped)
    errors = []
    for degree in (1, 4, 14):
        layer = NTKAttention.from_prefix(wrapped, prefix, phi=Taylor(d, degree), block=64)
        errors.append(float((layer(x, x, x)[0] - expected).detach().abs().max()))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-9
    whole = NTKAttention.from_prefix(wrapped, prefix, phi=Taylor(d, 14), block=10**6)
    torch.testing.assert_close(layer.prefix.Z, whole.prefix.Z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.prefix.kappa, whole.prefix.kappa, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("phi", [Elu1(d), PositiveRandom(d, 6, 0), Taylor(d, 2)], ids=lambda phi: type(phi).__name__)
def test_z_and_kappa_are_the_sums_over_the_prefix_for_every_map(phi) -> None:
    wrapped, prefix = attention(), normal((9, D), "prefix")
    _, k, v = heads(wrapped, prefix)
    layer = NTKAttention.from_prefix(wrapped, prefix, phi=phi, block=4)
    features = phi(k * d**-0.25)  # [H, m, r]
    torch.testing.assert_close(layer.prefix.Z, torch.einsum("hmr,hmv->hrv", features, v), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.prefix.kappa, features.sum(1), rtol=1e-10, atol=1e-10)


def test_a_causal_mask_hides_tokens_but_never_the_prefix() -> None:
    wrapped, prefix, x = attention(), 0.3 * normal((6, D), "prefix"), 0.3 * tokens(B, L)
    q, k, v = heads(wrapped, x)
    visible = torch.cat([torch.ones(L, 6), torch.ones(L, L).tril()], 1).bool()
    _, prefix_k, prefix_v = (t.expand(B, *t.shape) for t in heads(wrapped, prefix))
    exact = nn.functional.scaled_dot_product_attention(
        q, torch.cat([prefix_k, k], -2), torch.cat([prefix_v, v], -2), attn_mask=visible
    )
    layer = NTKAttention.from_prefix(wrapped, prefix, phi=Taylor(d, 14))
    out = layer(x, x, x, is_causal=True, need_weights=False)[0]
    torch.testing.assert_close(out, merged(exact, wrapped), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("positive", ["softplus", "abs"])
def test_kappa_stays_positive_whatever_is_trained(positive: str) -> None:
    layer = filled(NTKAttention(attention(), positive=positive))
    x = tokens(B, L)
    optimiser = torch.optim.SGD(layer.prefix.parameters(), lr=5.0)
    for _ in range(5):
        optimiser.zero_grad()
        layer(x, x, x)[0].square().mean().backward()
        optimiser.step()
        assert float(layer.prefix.kappa.min().detach()) > 0


def test_kappa_that_starts_at_zero_under_abs_never_moves() -> None:
    layer, x = NTKAttention(attention(), positive="abs"), tokens(B, L)
    optimiser = torch.optim.Adam(layer.prefix.parameters(), lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        (layer(x, x, x)[0] - 1).square().mean().backward()
        optimiser.step()
    assert float(layer.prefix.kappa.abs().max().detach()) == 0
    assert float(layer.prefix.Z.abs().min().detach()) > 0


def test_gradients_are_those_of_finite_differences() -> None:
    layer, x = filled(NTKAttention(attention())), tokens(1, 3)

    def out(Z: Tensor, raw: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"prefix.Z": Z, "prefix.raw": raw}, (x, x, x))[0]

    assert torch.autograd.gradcheck(out, (layer.prefix.Z, layer.prefix.raw))


def test_only_the_prefix_is_trained_unless_asked() -> None:
    layer = NTKAttention(attention())
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"prefix.Z", "prefix.raw"}
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == H * (d * d + d)
    assert all(p.requires_grad for p in NTKAttention(attention(), frozen=False).parameters())


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_inside_an_encoder_layer_its_own_forward_runs(norm_first: bool, grad: bool) -> None:
    """Where torch would take its fused inference path it must not: that path knows no prefix."""
    torch.manual_seed(1)
    encoder = nn.TransformerEncoderLayer(D, H, 16, batch_first=True, norm_first=norm_first).to(F64).eval()
    plain, x = copy.deepcopy(encoder), tokens(B, L)
    encoder.self_attn = NTKAttention(encoder.self_attn, positive="free")
    padding = MASKS["padding"]["key_padding_mask"]
    with torch.set_grad_enabled(grad):
        for masks in ({}, {"src_key_padding_mask": padding}, {"src_mask": MASKS["causal"]["attn_mask"]}):
            same = encoder(x, **masks)
            torch.testing.assert_close(same, plain(x, **masks), rtol=1e-10, atol=1e-10)
        filled(encoder.self_attn)
        assert float((encoder(x, **masks) - same).detach().abs().max()) > 1e-3
    stack = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
    with torch.no_grad():
        expected = encoder(encoder(x, src_key_padding_mask=padding), src_key_padding_mask=padding)
        torch.testing.assert_close(stack(x, src_key_padding_mask=padding), expected)


def test_dropout_of_features_acts_in_training_alone_and_is_right_on_average() -> None:
    layer, x = filled(NTKAttention(attention(), dropout=0.5)), tokens(1, 2)
    without = filled(NTKAttention(attention()))
    torch.testing.assert_close(layer.eval()(x, x, x)[0], without(x, x, x)[0])
    layer.train()
    torch.manual_seed(0)
    q, k, v = heads(layer.attention, x)
    ones, nothing = torch.ones_like(v), Folded(torch.zeros_like(layer.prefix.Z), layer.prefix.kappa.detach())
    layer.prefix.assign(nothing)
    # With values 1 and Z = 0 the output is mass / (mass + phi . kappa); its inverse is linear in the dropped features.
    with torch.no_grad():
        inverse = torch.stack([1 / layer.prefix(q, k, ones) for _ in range(4000)])
    layer.eval()
    expected = 1 / layer.prefix(q, k, ones)
    deviation = inverse.std(0) / math.sqrt(len(inverse))
    assert float(deviation.min()) > 0
    assert float(((inverse.mean(0) - expected).abs() / deviation).max().detach()) < 5


def test_weights_and_what_the_prefix_adds_come_from_one_draw_of_dropped_features() -> None:
    layer = filled(NTKAttention(attention(), dropout=0.5)).prefix.train()
    with torch.no_grad():
        layer.Z.copy_(layer.kappa.unsqueeze(2).expand_as(layer.Z))  # every value of the prefix is one
    shape = (B, layer.Z.shape[0], L, layer.Z.shape[2])
    q, k = (torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    weights, of_prefix = layer.parts(q, k)
    again, _ = layer.parts(q, k)
    assert not torch.allclose(weights, again)
    torch.testing.assert_close(weights.sum(3, keepdim=True) + of_prefix, torch.ones_like(of_prefix))


def test_the_wrapped_dropout_goes_on_acting_on_the_weights_of_tokens() -> None:
    wrapped, x = attention(dropout=0.4), tokens(B, L)
    layer = NTKAttention(wrapped, positive="free").train()
    torch.manual_seed(3)
    out, weights = layer(x, x, x, average_attn_weights=False)
    v = heads(wrapped, x)[2]
    torch.testing.assert_close(out, merged(weights @ v, wrapped), rtol=1e-12, atol=1e-12)
    plain = wrapped.eval()(x, x, x, average_attn_weights=False)[1]
    kept = weights != 0
    torch.testing.assert_close(weights[kept], plain[kept] / 0.6, rtol=1e-12, atol=1e-12)
    assert 0.1 < 1 - kept.double().mean() < 0.7
    filled(layer)
    p = layer.prefix
    q, k, v = heads(wrapped, x)
    torch.manual_seed(3)
    out, weights = layer(x, x, x, average_attn_weights=False)
    share = p(q, k, torch.zeros_like(v))
    torch.testing.assert_close(out, merged(weights @ v + share, wrapped), rtol=1e-12, atol=1e-12)


def test_a_state_is_taken_up_by_a_fresh_layer(tmp_path) -> None:
    layer, x = filled(NTKAttention(attention())), tokens(B, L)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    torch.manual_seed(5)
    other = NTKAttention(nn.MultiheadAttention(D, H, batch_first=True, dtype=F64))
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    torch.testing.assert_close(other(x, x, x)[0], layer(x, x, x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_neither_overflows_nor_loses_its_way(dtype: torch.dtype, autocast: bool) -> None:
    """Logits of ± 100 and more: exp overflows float32 above 88, float16 above 11."""
    prefix, x = normal((20, D), "prefix"), 6 * tokens(B, L)
    exact = NTKAttention.from_prefix(attention(), prefix)
    q, k, _ = heads(exact.attention, x)
    assert float((q @ k.mT).abs().max()) / math.sqrt(d) > 88
    layer = NTKAttention.from_prefix(attention(torch.float32 if autocast else dtype), prefix)
    assert layer.prefix.Z.dtype == layer.prefix.raw.dtype == torch.float32
    given = x.to(torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = layer(given, given, given, need_weights=False)[0]
    assert out.dtype == dtype
    assert out.isfinite().all()
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.prefix.parameters())
    small = 0.1 * x
    expected = exact(small, small, small)[0]
    given = small.to(torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = layer(given, given, given, need_weights=False)[0]
    size = float(expected.detach().abs().max())
    error = float((out.double() - expected).detach().abs().max())
    assert error < 20 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_the_prefix_are_taken_in_float32_under_autocast(dtype: torch.dtype) -> None:
    layer, x = filled(NTKAttention(attention(torch.float32))), tokens(B, L, dtype=torch.float32)
    q, k, v = heads(layer.attention, x)
    with torch.autocast("cpu", dtype=dtype):
        found = layer.prefix(q, k, v)
    torch.testing.assert_close(found, layer.prefix(q, k, v), rtol=0, atol=0)


def test_misuse_is_refused() -> None:
    layer, x = NTKAttention(attention()), tokens(B, L)
    for message, call in (
        ("query, key and value must be the same tensor", lambda: layer(x, x.clone(), x)),
        (r"key_padding_mask must be \(3, 5\), got \(3, 4\)", lambda: layer(x, x, x, torch.zeros(3, 4))),
        (r"attn_mask must be \(5, 5\) or \(6, 5, 5\), got \(3, 5, 5\)", lambda: layer(x, x, x, attn_mask=torch.zeros(3, 5, 5))),
        ("tokens must have 8 entries, got 4", lambda: (lambda y: layer(y, y, y))(x[..., :4])),
        ("add_bias_kv or add_zero_attn cannot be wrapped", lambda: NTKAttention(attention(add_bias_kv=True))),
        ("add_bias_kv or add_zero_attn cannot be wrapped", lambda: NTKAttention(attention(add_zero_attn=True))),
        ("kdim = 3 and vdim = 8", lambda: NTKAttention(nn.MultiheadAttention(D, H, kdim=3))),
        ("positive = 'relu': choose 'softplus', 'abs' or 'free'", lambda: NTKAttention(attention(), positive="relu")),
        (r"dropout = 1.0 must lie in \[0, 1\)", lambda: NTKAttention(attention(), dropout=1.0)),
        ("prefix must be rows of 8 numbers", lambda: NTKAttention.from_prefix(attention(), torch.zeros(4, 7))),
        ("prefix must be rows of 8 numbers", lambda: NTKAttention.from_prefix(attention(), torch.zeros(0, 8))),
        (
            "kappa has entries ≤ 0, which positive = 'softplus' cannot hold",
            lambda: NTKAttention.from_prefix(attention(), tokens(3), phi=Taylor(d, 1), positive="softplus"),
        ),
        (
            r"kappa \(3, 4\) does not fit",
            lambda: FoldedPrefix(Elu1(d), 2, d).assign(Folded(torch.zeros(3, d, d), torch.ones(3, d))),
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    nested = torch.nested.nested_tensor([tokens(2), tokens(3)], layout=torch.jagged)
    with pytest.raises(ValueError, match="set use_nested_tensor = False on the TransformerEncoder"):
        layer(nested, nested, nested)
