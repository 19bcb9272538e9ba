from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from theory.abc.dynamics import (
    coordinate_check,
    empirical_ntk,
    max_stable_learning_rate,
    stack,
    training_loss,
    trajectory,
)
from theory.abc.networks import layer_rates
from theory.abc.spec import AbcSpec, maximal_update, mean_field, neural_tangent, parse, standard, uniform
from theory.ensemble import normal, training

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


def relative(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(b).max())


SPECS = {
    1: [
        maximal_update(1),
        neural_tangent(1),
        standard(1),
        mean_field(1),
        uniform(1, "1/4"),
        parse("mup-zero-readout", 1),
    ],
    2: [maximal_update(2), neural_tangent(2), standard(2), uniform(2, "1/8"), parse("mup-flat-input", 2)],
}


# The networks


@pytest.mark.parametrize(
    "spec", [neural_tangent(2), maximal_update(2), standard(2, "1/2"), parse("mup-zero-readout", 2)]
)
def test_a_stack_has_the_multipliers_sizes_and_rates_of_its_spec(spec):
    n, eta = 256, 0.7
    mlp = stack([spec], [0], n, "tanh", eta, d=n, d_o=n)
    for index in range(spec.L + 1):
        a, b, c = (float(e[index]) for e in (spec.a, spec.b, spec.c))
        assert float(mlp.multipliers[index]) == pytest.approx(n**-a, rel=1e-14)
        assert float(mlp.rates[index]) == pytest.approx(eta * n**-c, rel=1e-14)
        deviation = float(mlp.weights[index].square().mean().sqrt())
        assert deviation == pytest.approx(0.0 if b == math.inf else n**-b, rel=5 / math.sqrt(2 * n * n))


def test_sigma_scales_the_initial_weights_only():
    spec = neural_tangent(1)
    wide = AbcSpec(spec.a, spec.b, spec.c, (2.0, 0.5))
    plain, scaled = (stack([s], [0], 32, "tanh", 1.0, d=D, d_o=D_O) for s in (spec, wide))
    assert torch.equal(scaled.weights[0], 2 * plain.weights[0])
    assert torch.equal(scaled.weights[1], 0.5 * plain.weights[1])
    assert torch.equal(scaled.rates, plain.rates)


def test_initial_draws_depend_on_seed_and_width_not_on_spec_or_place():
    a = stack([neural_tangent(1), mean_field(1)], [3, 4], 32, "tanh", 1.0, d=D, d_o=D_O)
    b = stack([mean_field(1), neural_tangent(1), neural_tangent(1)], [4, 3, 5], 32, "relu", 2.0, d=D, d_o=D_O)
    other = stack([neural_tangent(1)], [3], 64, "tanh", 1.0, d=D, d_o=D_O)
    for wa, wb, wo in zip(a.weights, b.weights, other.weights, strict=True):
        assert torch.equal(wa[0], wb[1])
        assert torch.equal(wa[1], wb[0])
        both = torch.stack([wo[0].flatten()[:96], wa[0].flatten()[:96]])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / math.sqrt(96)
    single = stack([neural_tangent(1)], [3], 32, "tanh", 1.0, d=D, d_o=D_O, dtype=torch.float32)
    assert relative(single.weights[0][0], a.weights[0][0]) < 1e-6


@pytest.mark.parametrize(
    ("specs", "seeds", "eta", "message"),
    [
        ([], [], 1.0, "one spec, seed and learning rate per member"),
        ([neural_tangent(1)], [0, 1], 1.0, r"'specs': 1, 'seeds': 2"),
        ([neural_tangent(1)], [0], [1.0, 2.0], r"'eta': 2"),
        ([neural_tangent(1), neural_tangent(2)], [0, 0], 1.0, r"same depth, got L = \[1, 2\]"),
    ],
)
def test_a_stack_names_what_does_not_fit(specs, seeds, eta, message):
    with pytest.raises(ValueError, match=message):
        stack(specs, seeds, 8, "tanh", eta, d=D, d_o=D_O)
    with pytest.raises(ValueError, match=message):
        trajectory(specs, seeds, 8, "tanh", "mse", eta, **problem())


# What the theory says must hold exactly


def shifted(spec: AbcSpec) -> list[AbcSpec]:
    per_layer = [Fraction(k + 1, 3) * (-1) ** k for k in range(spec.L + 1)]
    return [spec, spec.shift("1/2"), spec.shift("-2/3"), spec.shift(per_layer), spec.canonical()]


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("loss", ["mse", "xent"])
def test_abc_symmetry_leaves_training_unchanged(L, loss):
    """Yang & Hu, Section 3.2, Eq. (5): f_t is invariant; also layer by layer."""
    data = problem()
    for spec in SPECS[L]:
        family = shifted(spec)
        f = trajectory(family, [0] * len(family), 64, "tanh", loss, 0.5, **data, steps=5)
        scale = np.abs(f[0] - f[0, :1]).max()
        assert scale > 1e-3
        assert np.abs(f - f[0]).max() < 1e-9 * scale


def test_abc_symmetry_notices_a_learning_rate_applied_to_the_scaled_weights():
    data, spec, n = problem(), neural_tangent(2), 64
    outputs = []
    for member in (spec, spec.shift("1/2")):
        mlp = stack([member], [0], n, "tanh", 0.5, d=D, d_o=D_O)
        mlp.set_rates(mlp.rates / mlp.multipliers**2)  # W -= η ∂L/∂W
        start = mlp.predict(data["probes"])
        for x, y in zip(data["x_batches"][:5], data["y_batches"][:5], strict=True):
            mlp.step(x, y, "mse")
        outputs.append(mlp.predict(data["probes"]) - start)
    assert float((outputs[0] - outputs[1]).abs().max()) > 0.1 * float(outputs[0].abs().max())


def test_mean_field_and_maximal_update_are_one_network_at_depth_one():
    """Yang & Hu, Section 5: equal trajectories, from equal draws."""
    f = trajectory([mean_field(1), maximal_update(1)], [0, 0], 128, "relu", "mse", 0.3, **problem())
    assert np.abs(f[0] - f[1]).max() < 1e-9 * np.abs(f[0] - f[0, :1]).max()


@pytest.mark.parametrize("n", [64, 256])
def test_hidden_layers_wait_one_step_for_a_readout_that_starts_at_zero(n):
    spec = parse("mup-zero-readout", 2)
    found = coordinate_check([spec], [0], n, "tanh", "mse", 1.0, **problem(), record=(1, 2))
    for name in ("dh", "dx", "dWx"):
        assert not found[name][:, 0].any()
        assert (found[name][:, 1] > 1e-3).all()
    assert not found["f0"].any()
    assert (found["df"] > 1e-2).all()


def test_a_linear_network_with_only_its_first_layer_trained_learns_features_and_is_a_kernel():
    """Yang & Hu, Section 3: the dichotomy needs a nonlinear φ; this network is on both sides."""
    data = problem()
    found = coordinate_check([maximal_update(1)], [0], 256, "identity", "linear", 4.0, **data, trainable=(1,))
    assert (found["kernel_residual"] < 1e-10).all()
    assert (found["ntk_change"] < 1e-10).all()
    assert (found["feature_kernel"][:, -1] > 0.1).all()
    full = coordinate_check([maximal_update(1)], [0], 256, "identity", "linear", 4.0, **data)
    assert (full["kernel_residual"][:, -1] > 0.1).all()


@pytest.mark.parametrize("L", [1, 2])
def test_a_small_step_follows_the_tangent_kernel(L):
    """f_1 = f_0 - (η/B) Θ χ up to O(η) relative, with each layer weighted by its learning rate."""
    data, n = problem(), 32
    inputs = torch.cat([data["probes"], data["x_batches"][0]])
    for spec in (
        standard(L),
        maximal_update(L),
        neural_tangent(L).shift("1/2"),
        neural_tangent(L).shift([1] + [0] * L),
    ):
        mlp = stack([spec], [0], n, "tanh", 1.0, d=D, d_o=D_O)
        kernel = empirical_ntk(mlp, inputs, layer_rates=layer_rates([spec], n), full=True)[0, :P, :, P:]
        f0 = mlp.predict(inputs)[0]
        chi = f0[P:] - data["y_batches"][0]
        speed = -torch.einsum("akbj,bj->ak", kernel, chi) / B
        errors = []
        for eta in (1e-3, 1e-4):
            f = trajectory([spec], [0], n, "tanh", "mse", eta, **data, steps=1)[0]
            errors.append(relative((f[1] - f[0]) / eta, speed))
        assert errors[0] < 0.2
        assert errors[1] == pytest.approx(errors[0] / 10, rel=0.2)


def test_exponents_of_a_training_run_are_those_predicted():
    """One cheap look at the whole chain; tolerances are far wider than the scatter of 8 seeds (about 0.02)."""
    widths, seeds = [64, 128, 256, 512], range(8)
    data = problem(members=8)
    for name in ("mup", "ntp", "sp", "up:1/4", "mup-flat-input"):
        spec = parse(name, 2)
        sizes = [
            coordinate_check(
                [spec] * 8, seeds, n, "tanh", "linear", 4.0, **data, record=(1,), quantities=("dh", "f0", "df")
            )
            for n in widths
        ]
        for quantity in ("dh", "f0", "df"):
            logs = np.log([size[quantity][:, 0] for size in sizes]).mean(1)  # [widths, layers]
            slopes = np.polyfit(np.log(widths), logs, 1)[0]
            layers = [1, 2] if quantity == "dh" else [None]
            predicted = [float(spec.predicted_exponent(quantity, layer, t=1)) for layer in layers]
            np.testing.assert_allclose(slopes, predicted, atol=0.12, err_msg=f"{name} {quantity}")


# A member's results do not depend on its pack


def pack_members(count: int) -> tuple[list[AbcSpec], list[int], list[float]]:
    """Member 3 is the one compared; packs of 1 hold it alone."""
    rows = range(3, 4) if count == 1 else range(count)
    specs = [SPECS[2][k % len(SPECS[2])] for k in rows]
    return specs, [k % 7 for k in rows], [0.5 + 0.1 * (k % 9) for k in rows]


@pytest.mark.parametrize("cache", [training.CACHE_BYTES, 2**16])
def test_results_do_not_depend_on_the_pack(cache, monkeypatch):
    monkeypatch.setattr(training, "CACHE_BYTES", cache)
    everything = problem(members=64)
    x, y = unit(normal((40, D), "train")), normal((40, D_O), "targets")
    results = []
    for count in (1, 4, 64):
        specs, seeds, etas = pack_members(count)
        place = 0 if count == 1 else 3
        own = {name: value[3:4] if count == 1 else value[:count] for name, value in everything.items()}
        found = {"f": trajectory(specs, seeds, 32, "tanh", "mse", etas, **own)[place]}
        found |= {k: v[place] for k, v in coordinate_check(specs, seeds, 32, "tanh", "mse", etas, **own).items()}
        trained = training_loss(
            specs, seeds, 32, "relu", "xent", etas, x, torch.softmax(y, -1), batch=8, steps=20, record=(0, 10, 19),
            data_seeds=[seed + 100 for seed in seeds], evaluate={"test": (x, y)}, dtype=torch.float64,
        )  # fmt: skip
        found |= {f"training_{name}": value[place] for name, value in trained.items()}
        results.append(found)
    for found in results[1:]:
        for name, value in found.items():
            np.testing.assert_allclose(value, results[0][name], rtol=1e-10, atol=1e-300, err_msg=name)


# Learning rates and training


def test_the_largest_stable_rate_of_a_linear_model_is_that_of_its_spectrum():
    """With one batch and the readout alone trained, each mode λ of the Gram matrix evolves as (1 - η λ)^t."""
    seeds, n, steps, bisections, low, high = range(5), 16, 12, 9, -6.0, 10.0
    x = unit(normal((B, D), "x")).expand(steps, -1, -1)
    y = normal((B, D_O), "y").expand(steps, -1, -1)
    spec = neural_tangent(1)
    found = max_stable_learning_rate(
        [spec] * 5, seeds, n, "tanh", "mse", x, y,
        steps=steps, bisections=bisections, low=low, high=high, trainable=(2,), dtype=torch.float64,
    )  # fmt: skip
    assert list(found.where) == ["inside"] * 5
    mlp = stack([spec] * 5, seeds, n, "tanh", 1.0, d=D, d_o=D_O)
    states = mlp.states(x[0])
    for k in seeds:
        eigenvalues, vectors = torch.linalg.eigh(states.x[0][k] @ states.x[0][k].T / (n * B))
        modes = (vectors.T @ (states.f[k] - y[0])).square().sum(1)
        limit = 3 * max(modes.sum() / (2 * B), y[0].square().sum() / (2 * B))

        grid = 2.0 ** np.linspace(low, high, 20001)
        factors = (1 - np.multiply.outer(grid, eigenvalues.numpy())) ** 2  # [grid, modes]
        losses = [(factors**t) @ modes.numpy() / (2 * B) for t in range(steps + 1)]
        exact = grid[np.max(losses, axis=0) < float(limit)].max()
        assert abs(math.log2(found.eta[k] / exact)) <= (high - low) / 2**bisections
        assert exact > 2 / float(eigenvalues[-1])  # finitely many steps allow a little more than the asymptotic bound


def test_a_stable_rate_outside_the_range_is_said_to_be_so():
    data = problem()
    specs, batches = [neural_tangent(1)] * 2, (data["x_batches"], data["y_batches"])
    small = max_stable_learning_rate(specs, [0, 1], 16, "tanh", "mse", *batches, steps=4, low=-30, high=-20)
    large = max_stable_learning_rate(specs, [0, 1], 16, "relu", "mse", *batches, steps=4, low=20, high=30)
    assert list(small.where) == ["above"] * 2
    assert list(large.where) == ["below"] * 2
    assert np.isnan(small.eta).all()
    assert np.isnan(large.eta).all()
    with pytest.raises(ValueError, match="'linear' has no lower bound"):
        max_stable_learning_rate(specs, [0, 1], 16, "tanh", "linear", *batches, steps=4)
    with pytest.raises(ValueError, match="low = 2 must be less than high = 2"):
        max_stable_learning_rate(specs, [0, 1], 16, "tanh", "mse", *batches, steps=4, low=2, high=2)
    with pytest.raises(ValueError, match=f"steps = {T + 1} must lie between 1 and {T}"):
        max_stable_learning_rate(specs, [0, 1], 16, "tanh", "mse", *batches, steps=T + 1)


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    x = torch.tensor(data.data / 16)
    x = x - x.mean(0)
    return x / x.square().sum(1).mean().sqrt(), torch.nn.functional.one_hot(torch.tensor(data.target), 10).double()


@pytest.mark.parametrize("loss", ["mse", "xent"])
def test_digits_are_learned(loss):
    x, y = digits()
    specs = [maximal_update(2), neural_tangent(2)]
    found = training_loss(
        specs, [0, 0], 64, "tanh", loss, [4.0, 4.0], x[:1400], y[:1400], batch=32, steps=200, data_seeds=[0, 1],
        record=(0, 199), evaluate={"train": (x[:1400], y[:1400]), "test": (x[1400:], y[1400:])},
    )  # fmt: skip
    at_zero = 0.5 if loss == "mse" else math.log(10)
    assert found["loss"][0, 0] == pytest.approx(at_zero, rel=0.2)  # μP starts near f = 0
    assert (found["loss"][:, 1] < found["loss"][:, 0] / 2).all()
    assert (found["test_accuracy"] > 0.8).all()
    assert (found["train_accuracy"] > 0.85).all()
    assert (found["train_loss"] < at_zero / 2).all()


def test_divergence_is_recorded_and_stays_with_its_member():
    x, y = digits()
    etas = [1.0, 1e8, 1.0]

    def run(members: list[int]) -> dict[str, np.ndarray]:
        return training_loss(
            [standard(2, 0)] * len(members), [0] * len(members), 32, "identity", "mse",
            [etas[k] / 32 for k in members], x, y, batch=16, steps=60, data_seeds=[0] * len(members),
            record=(59,), evaluate={"test": (x[:100], y[:100])},
        )  # fmt: skip

    found, alone = run([0, 1, 2]), run([0])
    assert not np.isfinite(found["loss"][1]).any()
    assert not np.isfinite(found["test_loss"][1])
    assert np.isnan(found["test_accuracy"][1])
    for name, value in alone.items():
        np.testing.assert_allclose(found[name][[0, 2]], np.concatenate([value, value]), rtol=1e-4)
    data = problem()
    checked = coordinate_check([standard(2, 0)], [0], 64, "relu", "mse", 1e60, **data, record=(1, 6))
    assert not np.isfinite(checked["dh"][:, -1]).all()
    assert not np.isfinite(trajectory([standard(2, 0)], [0], 64, "identity", "mse", 1e60, **data)[:, -1]).any()


def test_training_names_what_does_not_fit():
    x, y = unit(normal((20, D), "x")), normal((20, D_O), "y")
    arguments = ([neural_tangent(1)], [0], 8, "tanh", "mse", 1.0, x, y)
    with pytest.raises(ValueError, match="2 data seeds for 1 specs"):
        training_loss(*arguments, batch=4, steps=3, data_seeds=[0, 1])
    with pytest.raises(ValueError, match="batch = 21 must lie between"):
        training_loss(*arguments, batch=21, steps=3, data_seeds=[0])
    with pytest.raises(ValueError, match=r"record = \[3\]"):
        training_loss(*arguments, batch=4, steps=3, data_seeds=[0], record=(3,))
    with pytest.raises(ValueError, match=f"steps = {T + 1} must lie between 0 and {T}"):
        trajectory(*arguments[:6], **problem(), steps=T + 1)
