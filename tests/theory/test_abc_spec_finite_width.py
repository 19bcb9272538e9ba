"""The specs' promises against tiny networks written out in NumPy."""

from __future__ import annotations

import math
from fractions import Fraction as F

import numpy as np
import pytest

from theory.abc.spec import AbcSpec, abc_spec, maximal_update, standard, uniform

SLOW_ZERO_READOUT = abc_spec(["-3/8", "1/2"], ["3/8", math.inf])
SMALL_READOUT = abc_spec(["-1/2", "1/2"], ["1/2", "3/4"])  # A = 5/4 > C = 1


def test_trajectories_agree_after_a_shift_per_layer() -> None:
    """Equation (5) on a tiny linear network, w and rates taken from the exponents alone."""
    n, eta = 16, 0.3
    draws = np.random.default_rng(0)
    normal = [draws.normal(size=(n, 3)), draws.normal(size=(n, n)), draws.normal(size=(1, n))]
    x, y = draws.normal(size=3), 0.7

    def outputs(spec: AbcSpec) -> list[float]:
        w = [g * n ** -float(b) for g, b in zip(normal, spec.b, strict=True)]
        values = []
        for _ in range(6):
            w1, w2, w3 = (v * n ** -float(a) for v, a in zip(w, spec.a, strict=True))
            h1, h2 = w1 @ x, w2 @ w1 @ x
            values.append(float((w3 @ h2).item()))
            chi = values[-1] - y
            grads = [np.outer(w2.T @ w3[0], x), np.outer(w3[0], h1), h2[None]]
            w = [
                v - eta * n ** -float(c) * chi * n ** -float(a) * g
                for v, a, c, g in zip(w, spec.a, spec.c, grads, strict=True)
            ]
        return values

    base = maximal_update(2)
    reference = outputs(base)
    assert abs(reference[-1] - reference[0]) > 0.1
    for theta in (F(1, 3), [F(1, 4), F(-1, 2), F(1, 3)]):
        np.testing.assert_allclose(outputs(base.shift(theta)), reference, rtol=0, atol=1e-12)
    wrong = AbcSpec(base.shift(F(1, 2)).a, base.shift(F(1, 2)).b, base.c)
    assert np.abs(np.subtract(outputs(wrong), reference)).max() > 1e-3


@pytest.mark.parametrize(
    ("spec", "quantity"),
    [
        (SLOW_ZERO_READOUT, "feature_kernel"),
        (SLOW_ZERO_READOUT, "dh"),
        (SMALL_READOUT, "W0dx_out"),
        (SMALL_READOUT, "dh"),
        (uniform(1, "1/4"), "feature_kernel"),
        (uniform(1, "1/4"), "W0dx_out"),
        (standard(1), "feature_kernel"),
    ],
)
def test_derived_exponents_against_finite_networks(spec: AbcSpec, quantity: str) -> None:
    """One hidden layer, tanh, linear loss, three steps, 64 nets per width: slope within 0.08 of the prediction."""
    widths = (256, 1024, 4096)
    slope = np.polyfit(np.log(widths), [math.log(measure(spec, quantity, n)) for n in widths], 1)[0]
    assert slope == pytest.approx(
        float(spec.predicted_exponent(quantity, 1 if quantity == "dh" else None, t=3)), abs=0.08
    )


def measure(spec: AbcSpec, quantity: str, n: int, nets: int = 64) -> float:
    """Root-mean-square size over nets and probes of a quantity after three steps at width n."""
    data = np.random.default_rng(0)
    x = data.normal(size=(10, 4)) / 2 + 0.3
    y = data.normal(size=(10, 2))
    probes, total = x[:5], []
    for net in range(nets):
        draws = np.random.default_rng((n, net))
        w1 = n ** -float(spec.b[0]) * draws.normal(size=(n, 4))
        w2 = n ** -float(spec.b[1]) * draws.normal(size=(2, n))
        m1, m2 = (n ** -float(a) for a in spec.a)
        start_h, start_readout = m1 * probes @ w1.T, m2 * w2
        for _ in range(3):
            features = np.tanh(m1 * x @ w1.T)
            back = (-y @ (m2 * w2)) * (1 - features**2)
            w2 = w2 - 4 * n ** -float(spec.c[1]) * m2 * (-y).T @ features / 10
            w1 = w1 - 4 * n ** -float(spec.c[0]) * m1 * back.T @ x / 10
        h = m1 * probes @ w1.T
        before, after = np.tanh(start_h), np.tanh(h)
        if quantity == "dh":
            total.append(np.mean((h - start_h) ** 2))
        elif quantity == "W0dx_out":
            total.append(np.mean(((after - before) @ start_readout.T) ** 2))
        else:
            total.append(np.sum((after @ after.T - before @ before.T) ** 2) / np.sum((before @ before.T) ** 2))
    return math.sqrt(np.mean(total))
