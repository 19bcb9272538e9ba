"""The prefixes and maps that errors are measured on, and the fit of (Z, kappa) itself."""

from __future__ import annotations

import math

import pytest
import torch

from studies.prefix.approximation import ARMS, errors_of_seed, fold_all
from studies.prefix.fitting import SEQUENCES, blend, fit, tokens
from studies.prefix.prefixes import (
    DEGREES,
    KINDS,
    LARGEST_MAP,
    SHIFT,
    TOPIC_NOISE,
    TOPICS,
    degrees,
    feature_map,
    inputs,
    largest_map,
    maps,
    prefix,
    weights,
)
from theory.ensemble import normal
from theory.ntk_attention.attention import Folded, fold, ntk_attention, plain_attention
from theory.ntk_attention.features import Taylor

D = 8


# Prefixes


def test_keys_and_values_are_tied_but_where_they_should_not_be():
    _, W_K, W_V = weights(D, 3)
    for kind in KINDS:
        pk, pv = prefix(kind, 4000, D, 3)
        P = pk @ W_K.inverse()
        tied = float((P @ W_V - pv).abs().max()) < 1e-9
        assert tied == (kind != "iid values")
        if kind != "topics":
            mean = P.mean(0)
            assert float((mean - (SHIFT if kind == "shifted" else 0.0)).abs().max()) < 5 / math.sqrt(4000)


def test_rows_of_topics_lie_around_centres_that_do_not_depend_on_m():
    _, W_K, _ = weights(D, 3)
    centres = []
    for m in (4000, 8000):
        P = prefix("topics", m, D, 3)[0] @ W_K.inverse()
        means = P.view(-1, TOPICS, D).mean(0)
        assert float((P.view(-1, TOPICS, D) - means).std()) == pytest.approx(TOPIC_NOISE, rel=0.02)
        assert float(torch.pdist(means).min()) > 3 * TOPIC_NOISE
        centres.append(means)
    torch.testing.assert_close(*centres, rtol=0, atol=6 * TOPIC_NOISE / math.sqrt(1000))
    assert prefix("topics", 6, D, 3)[0].shape == (6, D)


def test_another_prefix_has_another_affine_limit():
    """With common weights W_V^T W_K q would be the limit of all centred Gaussian prefixes."""
    assert not torch.equal(prefix("shifted", 8, D, 3)[0], prefix("shifted", 8, D, 4)[0])
    own, other = (weights(D, 3, draw) for draw in (0, 1))
    difference = (own[1] @ own[2] - other[1] @ other[2]).norm() / (own[1] @ own[2]).norm()
    assert float(difference) > 0.5


def test_taylor_maps_stop_where_their_features_are_too_many():
    assert degrees(8) == DEGREES
    assert degrees(64) == (0, 1, 2, 3)
    assert math.comb(64 + 4, 4) > LARGEST_MAP >= math.comb(64 + 3, 3) == largest_map(64)
    assert maps(64)[:4] == tuple(f"degree {g}" for g in range(4))


def test_folding_all_maps_at_once_is_folding_each():
    pk, pv = prefix("shifted", 50, D, 0)
    for name, (phi, found) in zip(maps(D), fold_all(D, 5, pk, pv), strict=True):
        assert phi == feature_map(name, D, 5)
        one = fold(phi, pk, pv)
        torch.testing.assert_close(found.Z, one.Z, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.kappa, one.kappa, rtol=1e-12, atol=1e-12)


def test_trials_measure_heads_of_64_dimensions_too():
    settings = [("shifted", 0.1), ("topics", 0.3)]
    found, negative = errors_of_seed(8, 64, settings, 0, "cpu")
    error = found[0, :, ARMS.index("folded")]  # [settings, maps]
    assert not negative[:, ARMS.index("folded")].any()
    assert (error[:, 1:4] < error[:, :3]).all()  # degrees 0 to 3
    assert found.isfinite().all()
    assert SEQUENCES * tokens(64) > 10 * feature_map("degree 1", 64).size


def test_logits_of_a_gaussian_prefix_have_the_spread_that_is_asked_for():
    q, *_ = inputs((200,), D, 1, 0.3, "test")
    pk, _ = prefix("gaussian", 20_000, D, 1)
    assert float((q @ pk.T / math.sqrt(D)).square().mean().sqrt()) == pytest.approx(0.3, rel=0.02)


def test_the_blend_that_is_fitted_is_ntk_attention():
    q, k, v = inputs((5, 6), D, 0, 1.0, "blend")
    phi = Taylor(D, 1)
    Z, kappa = normal((phi.size, D), "Z"), normal((phi.size,), "kappa").abs() + 3
    out, lse = plain_attention(q, k, v)
    found = blend(out.flatten(0, 1), lse.flatten()[:, None], phi(q * D**-0.25).flatten(0, 1), Z, kappa)
    expected = ntk_attention(q, k, v, phi, Folded(Z, kappa), fused=False)
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=1e-10, atol=1e-10)


def test_a_fit_finds_what_can_be_represented_whatever_its_units():
    features, plain = normal((300, 3), "features").abs(), normal((300, 2), "plain")
    lse = normal((300, 1), "lse")
    Z, kappa = normal((3, 2), "Z"), normal((3,), "kappa").abs()
    target = blend(plain, lse, features, Z, kappa)
    for unit in (1.0, 50.0):
        found = fit(plain, lse, features, target, unit, (torch.zeros_like(Z), torch.zeros_like(kappa)))
        torch.testing.assert_close(found[0], Z, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found[1], kappa, rtol=1e-3, atol=1e-3)
