from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from theory.abc.dynamics import MEASURED, coordinate_check, memory_bytes, stack
from theory.abc.spec import AbcSpec, maximal_update, neural_tangent, standard, uniform
from theory.ensemble import normal

D, D_O, B, P, T = 6, 3, 8, 5, 6


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def problem(*name: int | str, members: int | None = None) -> dict[str, Tensor]:
    """Batches and probes, shared or one set per member."""
    lead = () if members is None else (members,)
    return {
        "x_batches": unit(normal((*lead, T, B, D), "x", *name)),
        "y_batches": normal((*lead, T, B, D_O), "y", *name),
        "probes": unit(normal((*lead, P, D), "p", *name)),
    }


def reference_check(spec: AbcSpec, seed: int, n: int, eta: float, data: dict[str, Tensor], record, trainable):
    """coordinate_check of one tanh member with the MSE loss, by autograd and explicit Jacobians."""
    L, probes = spec.L, data["probes"]
    start = [w[0].clone() for w in stack([spec], [seed], n, "tanh", eta, d=D, d_o=D_O).weights]
    W = [n ** -float(a) for a in spec.a]
    rate = [n ** -float(c) for c in spec.c]

    def network(w, x):
        hs, xs = [], [x]
        for i in range(L):
            hs.append(W[i] * xs[-1] @ w[i].T)
            xs.append(torch.tanh(hs[-1]))
        return hs, xs, W[L] * xs[-1] @ w[L].T

    def jacobian(w):
        return torch.func.jacrev(lambda v: network(v, probes)[2])(w)

    def ntk(w):
        parts = zip(jacobian(w), rate, strict=True)
        return (
            sum(r * torch.einsum("akmn,bkmn->ab", j, j) for i, (j, r) in enumerate(parts) if i + 1 in trainable) / D_O
        )

    def rms(v):
        return float(v.square().mean().sqrt())

    def change(a, b):
        return float((a - b).norm() / b.norm())

    h0, x0, f0 = network(start, probes)
    w = [v.clone().requires_grad_() for v in start]
    found: dict[str, list] = {name: [] for name in MEASURED}
    for t in range(1, max(record) + 1):
        x, y = data["x_batches"][t - 1], data["y_batches"][t - 1]
        value = ((network(w, x)[2] - y) ** 2).sum() / (2 * B)
        gradients = torch.autograd.grad(value, w)
        with torch.no_grad():
            for i, (v, g) in enumerate(zip(w, gradients, strict=True)):
                v -= eta * rate[i] * g * (i + 1 in trainable)
        if t not in record:
            continue
        now = [v.detach() for v in w]
        dw = [a - b for a, b in zip(now, start, strict=True)]
        h, xs, f = network(now, probes)
        linear = sum(torch.einsum("akmn,mn->ak", j, d) for j, d in zip(jacobian(start), dw, strict=True))
        rows = {
            "h0": [rms(v) for v in h0],
            "f0": [rms(f0)],
            "dh": [rms(a - b) for a, b in zip(h, h0, strict=True)],
            "dx": [rms(a - b) for a, b in zip(xs[1:], x0[1:], strict=True)],
            "dWx": [rms(W[i] * xs[i] @ dw[i].T) for i in range(L)],
            "dWx_out": [rms(W[L] * xs[L] @ dw[L].T)],
            "W0dx_out": [rms(W[L] * (xs[L] - x0[L]) @ start[L].T)],
            "df": [rms(f - f0)],
            "feature_kernel": [change(a @ a.T, b @ b.T) for a, b in zip(xs[1:], x0[1:], strict=True)],
            "kernel_residual": [change(linear, f - f0)],
            "ntk_change": [change(ntk(now), ntk(start))],
            "loss": [float(value.detach())],
        }
        for name, row in rows.items():
            found[name].append(row)
    return {name: np.array(rows) for name, rows in found.items()}


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("trainable", [None, (1,)])
def test_coordinate_check_measures_its_definitions(L, trainable):
    specs = [maximal_update(L), neural_tangent(L).shift([1] + [0] * L), standard(L), uniform(L, "1/4")]
    data = problem(members=len(specs))
    etas = [1.0, 2.0, 0.5, 1.5]
    found = coordinate_check(specs, [0, 1, 2, 3], 20, "tanh", "mse", etas, **data, record=(1, 3), trainable=trainable)
    assert set(found) == set(MEASURED)
    for k, spec in enumerate(specs):
        own = {name: value[k] for name, value in data.items()}
        expected = reference_check(spec, k, 20, etas[k], own, (1, 3), trainable or tuple(range(1, L + 2)))
        for name in MEASURED:
            assert found[name].dtype == np.float64
            assert found[name][k].shape == expected[name].shape
            np.testing.assert_allclose(found[name][k], expected[name], rtol=1e-8, atol=1e-14, err_msg=name)


def test_isolated_contributions_add_up_to_the_movement_of_the_output():
    # Both parts are the whole movement when the other is frozen out.
    data = problem()
    only_out = coordinate_check([standard(2)], [0], 32, "tanh", "mse", 8.0, **data, trainable=(3,))
    np.testing.assert_allclose(only_out["dWx_out"], only_out["df"], rtol=1e-10)
    assert not only_out["dh"].any()
    assert not only_out["W0dx_out"].any()
    below = coordinate_check([standard(2)], [0], 32, "tanh", "mse", 8.0, **data, trainable=(1, 2))
    np.testing.assert_allclose(below["W0dx_out"], below["df"], rtol=1e-10)
    assert not below["dWx_out"].any()


def test_only_the_wanted_quantities_are_measured():
    data = problem()
    few = coordinate_check([uniform(2, "1/4")], [0], 16, "relu", "xent", 1.0, **data, quantities=("df", "dx"))
    everything = coordinate_check([uniform(2, "1/4")], [0], 16, "relu", "xent", 1.0, **data)
    assert set(few) == {"df", "dx"}
    assert all(np.array_equal(few[name], everything[name]) for name in few)
    with pytest.raises(ValueError, match=r"unknown quantities \['dw'\]; there is h0"):
        coordinate_check([uniform(2, "1/4")], [0], 16, "relu", "mse", 1.0, **data, quantities=("dw",))
    for record in [(), (0, 1), (1, T + 1)]:
        with pytest.raises(ValueError, match=f"must name steps between 1 and {T}"):
            coordinate_check([uniform(2, "1/4")], [0], 16, "relu", "mse", 1.0, **data, record=record)


def test_memory_grows_with_weights_and_is_bounded_in_members():
    def estimate(**changes: int) -> int:
        return memory_bytes(**{"K": 8, "n": 2048, "L": 2, "d": 64, "d_o": 10, "P": 24, **changes})

    weights = 8 * (64 * 2048 + 2048**2 + 10 * 2048)
    assert 2 * weights < estimate() < 6 * weights
    assert estimate(K=64) == estimate(K=8)  # one member at a time at this width
    assert estimate(n=64, K=4) == pytest.approx(4 * estimate(n=64, K=1))
