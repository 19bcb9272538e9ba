"""Prefix attention and NTK-Attention against torch's own attention, against each other, and at their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from theory.ensemble import normal
from theory.ntk_attention.attention import (
    Folded,
    fold,
    nonpositive_denominators,
    ntk_attention,
    plain_attention,
    prefix_attention,
    prefix_mass,
)
from theory.ntk_attention.features import Elu1, PositiveRandom, Taylor

B, H, L, M, D = 2, 3, 5, 7, 2
BOTH = pytest.mark.parametrize("fused", [True, False])


def drawn(*sizes: int, d: int = D, size: float = 0.5, lead: tuple[int, ...] = (B, H)) -> list[torch.Tensor]:
    return [size * normal((*lead, n, d), "attention", i, n) for i, n in enumerate(sizes)]


def nothing(r: int, d: int = D) -> Folded:
    return Folded(torch.zeros(r, d, dtype=torch.float64), torch.zeros(r, dtype=torch.float64))


@BOTH
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_high_degree_is_exact_prefix_attention(fused, causal, scale):
    """Against torch on [K_P; K] with a mask whose first m columns are all visible."""
    q, k, v, pk, pv = drawn(L, L, L, M, M)
    phi = Taylor(D, 14)
    mask = torch.ones(L, M + L, dtype=torch.bool)
    if causal:
        mask[:, M:] = torch.ones(L, L, dtype=torch.bool).tril()
    expected = sdpa(q, torch.cat([pk, k], -2), torch.cat([pv, v], -2), attn_mask=mask, scale=scale)
    exact = prefix_attention(q, k, v, pk, pv, causal=causal, scale=scale, fused=fused)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
    folded = fold(phi, pk, pv, scale=scale)
    found = ntk_attention(q, k, v, phi, folded, causal=causal, scale=scale, fused=fused)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_folding_is_the_sum_over_rows_and_does_not_know_blocks_or_order():
    _, _, _, pk, pv = drawn(L, L, L, 11, 11)
    phi = Taylor(D, 3)
    whole = fold(phi, pk, pv)
    rows = phi(pk * D**-0.25)
    torch.testing.assert_close(whole.Z, sum(rows[..., i, :, None] * pv[..., i, None, :] for i in range(11)))
    torch.testing.assert_close(whole.kappa, rows.sum(-2))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    for other in (
        fold(phi, pk, pv, block=3),
        fold(phi, pk[..., order, :], pv[..., order, :]),
        fold(phi, pk[..., :4, :], pv[..., :4, :]) + fold(phi, pk[..., 4:, :], pv[..., 4:, :]),
    ):
        torch.testing.assert_close(other.Z, whole.Z, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.kappa, whole.kappa, rtol=1e-12, atol=1e-12)


@BOTH
def test_without_a_prefix_it_is_plain_attention(fused):
    for size in (0.5, 30.0):  # logits up to several thousands, of either sign
        q, k, v = drawn(L, L, L, size=size)
        found = ntk_attention(q, k, v, Elu1(D), nothing(D), fused=fused)
        torch.testing.assert_close(found, sdpa(q, k, v), rtol=1e-13, atol=1e-13)
        if fused:
            assert torch.equal(found, plain_attention(q, k, v)[0])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_overflows_and_large_logits_leave_the_limit_they_should(fused, dtype):
    ones = torch.ones(1, 4, dtype=dtype)
    q, values = 1000 * ones, torch.tensor([[3.0, 3.0, 3.0, 3.0]], dtype=dtype)
    phi, folded = Elu1(4), Folded(5 * torch.ones(4, 4, dtype=dtype), torch.ones(4, dtype=dtype))
    above = ntk_attention(q, ones, values, phi, folded, fused=fused)  # t = 2000: the keys take all
    below = ntk_attention(q, -ones, values, phi, folded, fused=fused)  # t = -2000: the prefix takes all
    torch.testing.assert_close(above, values)
    torch.testing.assert_close(below, torch.full_like(values, 5.0))
    none = Folded(torch.zeros_like(folded.Z), torch.zeros_like(folded.kappa))
    torch.testing.assert_close(ntk_attention(q, -ones, values, phi, none, fused=fused), values)


def test_where_every_key_is_masked_it_is_linear_attention():
    q, k, v, pk, pv = drawn(L, L, L, M, M)
    phi = Elu1(D)
    folded = fold(phi, pk, pv)
    features = phi(q * D**-0.25)
    linear = features @ folded.Z / prefix_mass(q, phi, folded).unsqueeze(-1)
    torch.testing.assert_close(prefix_mass(q, phi, folded), (features * folded.kappa.unsqueeze(-2)).sum(-1))
    for mask in (torch.zeros(L, L, dtype=torch.bool), torch.full((L, L), -math.inf, dtype=torch.float64)):
        torch.testing.assert_close(ntk_attention(q, k, v, phi, folded, mask=mask), linear)


def test_masks_hide_keys_and_biases_shift_logits():
    q, k, v, pk, pv = drawn(L, L, L, M, M)
    phi = Taylor(D, 14)
    folded = fold(phi, pk, pv)
    visible = torch.rand(L, L, generator=torch.Generator().manual_seed(3)) > 0.4
    bias = normal((L, L), "bias")
    for mask in (visible, bias):
        zeros = torch.zeros(L, M, dtype=torch.float64)
        whole = torch.cat([zeros == 0 if mask.dtype == torch.bool else zeros, mask], -1)
        expected = sdpa(q, torch.cat([pk, k], -2), torch.cat([pv, v], -2), attn_mask=whole)
        found = ntk_attention(q, k, v, phi, folded, mask=mask)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    both = ntk_attention(q, k, v, phi, folded, mask=visible, causal=True)
    torch.testing.assert_close(both, ntk_attention(q, k, v, phi, folded, mask=visible & torch.ones(L, L).tril().bool()))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 2, 3)])
def test_leading_axes_broadcast(lead):
    q, k, v = (normal((*lead, L, 8), "lead", i) for i in range(3))
    Z, kappa = normal((4, *((1,) * len(lead)), 8, 8), "Z"), normal((4, *((1,) * len(lead)), 8), "kappa").abs()
    found = ntk_attention(q, k, v, Elu1(8), Folded(Z, kappa))
    assert found.shape == (4, *lead, L, 8)
    for i in range(4):
        one = ntk_attention(q, k, v, Elu1(8), Folded(Z[i], kappa[i]), fused=False)
        torch.testing.assert_close(found[i], one)
    exact = prefix_attention(q, k, v, normal((4, *((1,) * len(lead)), M, 8), "pk"), normal((M, 8), "pv"))
    assert exact.shape == (4, *lead, L, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@BOTH
def test_half_precision_is_computed_in_single(dtype, fused):
    q, k, v, pk, pv = (
        x.to(dtype) for x in drawn(L, L, L, M, M, d=8, size=4.0)
    )  # logits beyond 11: exp overflows float16
    folded = fold(Elu1(8), pk, pv)
    assert folded.Z.dtype == folded.kappa.dtype == torch.float32
    found = ntk_attention(q, k, v, Elu1(8), folded, fused=fused)
    double = Folded(folded.Z.double(), folded.kappa.double())
    expected = ntk_attention(q.double(), k.double(), v.double(), Elu1(8), double)
    assert found.dtype == dtype
    assert float((q.double() @ k.double().mT / math.sqrt(8)).max()) > 11
    torch.testing.assert_close(
        found.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
    )


@BOTH
@pytest.mark.parametrize("causal", [False, True])
def test_plain_attention_knows_its_denominators(fused, causal):
    q, k, v = drawn(L, L, L)
    with torch.set_grad_enabled(not fused):
        out, lse = plain_attention(q.requires_grad_(not fused), k, v, causal=causal)
    logits = (q @ k.mT / math.sqrt(D)).masked_fill(~torch.ones(L, L).tril().bool() & causal, -math.inf)
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    torch.testing.assert_close(out, sdpa(q, k, v, is_causal=causal))


@pytest.mark.parametrize("phi", [Elu1(D), Taylor(D, 2), PositiveRandom(D, 3, 0)], ids=repr)
def test_gradients_are_those_of_finite_differences(phi):
    q, k, v, pk, pv = (x.clone().requires_grad_() for x in drawn(3, 3, 3, 4, 4, lead=(2,)))
    Z, kappa = (x.clone().requires_grad_() for x in (normal((phi.size, D), "Z"), normal((phi.size,), "kappa").abs()))
    assert torch.autograd.gradcheck(
        lambda *x: ntk_attention(*x[:3], phi, Folded(*x[3:]), causal=True), (q, k, v, Z, kappa)
    )
    assert torch.autograd.gradcheck(lambda x, y: (fold(phi, x, y, block=3).Z, fold(phi, x, y).kappa), (pk, pv))


def test_gradients_do_not_depend_on_the_sign_of_the_largest_logit():
    """One key with t = 0 exactly, where two normalisations of the same sum meet."""
    q, k = torch.zeros(1, D, dtype=torch.float64, requires_grad=True), torch.ones(1, D, dtype=torch.float64)
    folded = Folded(normal((D, D), "Z"), normal((D,), "kappa").abs())
    v = torch.ones(1, D, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: ntk_attention(x, k, v, Taylor(D, 0), Folded(folded.Z[:1], folded.kappa[:1])), (q,)
    )


def test_function_transforms_take_the_explicit_path():
    q, k, v, pk, pv = drawn(L, L, L, M, M, lead=())
    phi, folded = Elu1(D), fold(Elu1(D), pk, pv)
    weight = normal(q.shape, "weight")

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (weight * ntk_attention(x, k, v, phi, folded)).sum()

    x = q.clone().requires_grad_()
    loss(x).backward()
    torch.testing.assert_close(torch.func.grad(loss)(q), x.grad)
    mapped = torch.func.vmap(lambda x: ntk_attention(x, k, v, phi, folded))(torch.stack([q, 2 * q]))
    for found, one in zip(mapped, (q, 2 * q), strict=True):
        torch.testing.assert_close(found, ntk_attention(one, k, v, phi, folded))


def test_denominators_that_are_not_positive_are_reported():
    """Degree 1 and one prefix key: the denominator is e^t1 + 1 + t2, negative for t2 < -1 - e^t1."""
    phi = Taylor(1, 1)
    q, k = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for t, negative in ((-1.5, False), (-1.99, False), (-2.01, True), (-9.0, True)):
        folded = fold(phi, torch.full((1, 1), t, dtype=torch.float64), k)
        assert nonpositive_denominators(q, k, phi, folded).tolist() == [negative]
    hidden = nonpositive_denominators(q, k, phi, fold(phi, k - 1.5, k), mask=torch.zeros(1, 1, dtype=torch.bool))
    assert hidden.tolist() == [True]
    # Far below -1 the tokens' part is tiny, but it is all there is, and `ntk_attention` divides by it.
    q, k, v = (torch.full((1, 2), value) for value in (30.0, -30.0, 7.0))
    nothing = Folded(torch.zeros(2, 2), torch.zeros(2))
    torch.testing.assert_close(ntk_attention(q, k, v, Elu1(2), nothing, fused=False), v)
    assert nonpositive_denominators(q, k, Elu1(2), nothing).tolist() == [False]


def test_bad_arguments_are_refused():
    q, k, v, pk, pv = drawn(L, L, L, M, M)
    folded = fold(Elu1(D), pk, pv)
    with pytest.raises(ValueError, match=r"folded with 2 features, but Taylor\(d=2, degree=2\) has 6"):
        ntk_attention(q, k, v, Taylor(D, 2), folded)
    with pytest.raises(ValueError, match=r"scale = -1.0 must be positive"):
        ntk_attention(q, k, v, Elu1(D), folded, scale=-1.0)
    for call in (
        lambda: ntk_attention(q[..., :2, :], k, v, Elu1(D), folded, causal=True),
        lambda: prefix_attention(q[..., :2, :], k, v, pk, pv, causal=True),
    ):
        with pytest.raises(ValueError, match=r"as many queries as keys, not 2 and 5"):
            call()
    with pytest.raises(ValueError, match=r"block = 0"):
        fold(Elu1(D), pk, pv, block=0)
    with pytest.raises(ValueError, match=r"7 prefix keys and 6 prefix values"):
        fold(Elu1(D), pk, pv[..., 1:, :])
    with pytest.raises(ValueError, match=r"do not fit"):
        Folded(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"cannot merge"):
        folded + fold(Taylor(D, 2), pk, pv)
