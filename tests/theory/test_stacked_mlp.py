from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from theory.ensemble import (
    ACTIVATIONS,
    LOSSES,
    Batches,
    StackedMLP,
    chunks,
    empirical_ntk,
    loss,
    members_per_chunk,
    normal,
    train,
    training,
)

K, B, SIZES = 3, 5, (4, 7, 6, 2)

REFERENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "erf": torch.erf,
    "gelu": nn.functional.gelu,
    "identity": lambda h: h,
}


def random_stack(name: str = "tanh", *, members: int = K, biases: bool = False, **options) -> StackedMLP:
    shapes = list(zip(SIZES[1:], SIZES[:-1], strict=True))
    layers = len(shapes)
    weights = [normal((members, *shape), "w", i) / shape[1] ** 0.5 for i, shape in enumerate(shapes)]
    return StackedMLP(
        weights,
        name,
        multipliers=0.5 + normal((layers, members), "m").abs(),
        rates=0.1 * (1 + normal((layers, members), "r").abs()),
        biases=[0.3 * normal((members, shape[0]), "b", i) for i, shape in enumerate(shapes)] if biases else None,
        **options,
    )


def plain_forward(
    mlp: StackedMLP, member: int, weights: list[Tensor], biases: list[Tensor] | None, x: Tensor
) -> Tensor:
    """The network written as in its definition, one member at a time."""
    for index, w in enumerate(weights):
        x = x @ w.T if biases is None else x @ w.T + biases[index]
        x = x * mlp.multipliers[index, member]
        if index < mlp.L:
            x = REFERENCE[mlp.activation.name](x)
    return x


def batch(*, members: int | None = K) -> tuple[Tensor, Tensor]:
    shape = (B,) if members is None else (members, B)
    return normal((*shape, SIZES[0]), "x"), torch.softmax(normal((*shape, SIZES[-1]), "y"), -1)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_agree_with_autograd(name, biases, shared):
    mlp = random_stack(name, biases=biases)
    x, y = batch(members=None if shared else K)
    for loss_name in sorted(LOSSES):
        f = mlp.forward(x)
        chi = loss(loss_name).chi(f, y, torch.empty_like(f)) / B
        on_w, on_b = mlp.gradients(x, chi)
        for k in range(K):
            weights = [w[k].clone().requires_grad_() for w in mlp.weights]
            bias = None if mlp.biases is None else [b[k].clone().requires_grad_() for b in mlp.biases]
            out = plain_forward(mlp, k, weights, bias, x if shared else x[k])
            value = loss(loss_name)(out, y if shared else y[k])
            expected = torch.autograd.grad(value, [*weights, *(bias or [])])
            found = [g[k] for g in on_w] + ([g[k] for g in on_b] if biases else [])
            assert relative(f[k], out.detach()) < 1e-12
            assert all(relative(a, b) < 1e-10 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_gradients_and_jvp_agree_with_finite_differences(name):
    mlp, (x, y) = random_stack(name), batch()
    dw = [normal(tuple(w.shape), "dw", i) for i, w in enumerate(mlp.weights)]
    chi = loss("xent").chi(mlp.forward(x), y, torch.empty(K, B, SIZES[-1], dtype=torch.float64)) / B
    directional = sum((g * d).sum((1, 2)) for g, d in zip(mlp.gradients(x, chi)[0], dw, strict=True))
    df = mlp.jvp(x, dw)[1][-1]
    epsilon, values, outputs = 1e-6, [], []
    for sign in (1, -1):
        moved = StackedMLP(
            [w + sign * epsilon * d for w, d in zip(mlp.weights, dw, strict=True)], name, multipliers=mlp.multipliers
        )
        outputs.append(moved.predict(x))
        values.append(loss("xent")(outputs[-1], y))
    assert relative((values[0] - values[1]) / (2 * epsilon), directional) < 1e-7
    assert relative((outputs[0] - outputs[1]) / (2 * epsilon), df) < 1e-7


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own jvp uses it
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("biases", [False, True])
def test_jvp_agrees_with_torch_func(name, biases):
    mlp, (x, _) = random_stack(name, biases=biases), batch()
    dw = [normal(tuple(w.shape), "dw", i) for i, w in enumerate(mlp.weights)]
    db = [normal(tuple(b.shape), "db", i) for i, b in enumerate(mlp.biases)] if mlp.biases else None
    states, tangents = mlp.jvp(x, (d for d in dw), db)
    for k in range(K):

        def network(weights, bias, k=k):
            return plain_forward(mlp, k, weights, bias, x[k])

        point = ([w[k] for w in mlp.weights], [b[k] for b in mlp.biases] if mlp.biases else None)
        tangent = ([d[k] for d in dw], [d[k] for d in db] if db else None)
        if not biases:
            point, tangent, function = point[:1], tangent[:1], lambda w, network=network: network(w, None)
        else:
            function = network
        f, df = torch.func.jvp(function, point, tangent)
        assert relative(states.f[k], f) < 1e-12
        assert relative(tangents[-1][k], df) < 1e-10
    # Tangents of hidden layers are those of the network cut off above them.
    for layer in range(1, mlp.L + 1):
        moved = [
            StackedMLP(
                [w + s * 1e-6 * d for w, d in zip(mlp.weights, dw, strict=True)], name, multipliers=mlp.multipliers,
                biases=None if not biases else [b + s * 1e-6 * d for b, d in zip(mlp.biases, db, strict=True)],
            ).states(x).h[layer - 1]
            for s in (1, -1)
        ]  # fmt: skip
        assert relative((moved[0] - moved[1]) / 2e-6, tangents[layer - 1]) < 1e-7


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_derivatives_of_activations_agree_with_finite_differences(name):
    act, h, step = ACTIVATIONS[name], torch.linspace(-3, 3, 50, dtype=torch.float64), 1e-6  # 0 is not among them
    for function, derivative in ((act, act.derivative), (act.derivative, act.second_derivative)):
        assert float(((function(h + step) - function(h - step)) / (2 * step) - derivative(h)).abs().max()) < 1e-8
    zero, g = torch.zeros(1, dtype=torch.float64), torch.full((50,), 2.0, dtype=torch.float64)
    assert float(act.second_derivative(zero)) == (pytest.approx((2 / torch.pi) ** 0.5) if name == "gelu" else 0.0)
    assert torch.allclose(act.pull_second(g, h, act(h)), 2 * act.second_derivative(h), rtol=1e-15)


@pytest.mark.parametrize("trainable", [None, (1,), (2, 3), (1, 3)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_step_moves_each_trainable_layer_by_its_own_rate(trainable, shared):
    mlp, (x, y) = random_stack("gelu", biases=True, trainable=trainable), batch(members=None if shared else K)
    before_w, before_b = [w.clone() for w in mlp.weights], [b.clone() for b in mlp.biases]
    f_before = mlp.predict(x)
    full = random_stack("gelu", biases=True)
    on_w, on_b = full.gradients(x, (full.forward(x) - y) / B)
    f = mlp.step(x, y, "mse")
    assert torch.equal(f, f_before)
    for index in range(mlp.L + 1):
        rate = mlp.rates[index].view(K, 1, 1) if trainable is None or index + 1 in trainable else torch.zeros(())
        assert torch.allclose(mlp.weights[index], before_w[index] - rate * on_w[index], rtol=1e-13, atol=1e-14)
        assert torch.allclose(
            mlp.biases[index], before_b[index] - rate.squeeze(-1) * on_b[index], rtol=1e-13, atol=1e-14
        )


def test_states_and_layers_are_those_of_the_definition():
    mlp, (x, _) = random_stack("erf", biases=True), batch()
    states = mlp.states(x)
    below = x
    for index in range(mlp.L):
        assert torch.allclose(states.h[index], mlp.layer(index + 1, below), rtol=1e-13)
        assert torch.allclose(states.x[index], torch.erf(states.h[index]), rtol=1e-13)
        below = states.x[index]
    assert torch.allclose(states.f, mlp.layer(mlp.L + 1, below), rtol=1e-13)
    assert torch.allclose(mlp.predict(x, rows=2), states.f, rtol=1e-13)
    assert mlp.sizes == SIZES


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("trainable", [None, (2,), (1, 3)])
@pytest.mark.parametrize("biases", [False, True])
def test_the_tangent_kernel_agrees_with_explicit_jacobians(name, trainable, biases):
    mlp, (x, _) = random_stack(name, trainable=trainable, biases=biases), batch()
    layer_rates = 0.5 + normal((mlp.L + 1, K), "rho").abs()
    full = empirical_ntk(mlp, x, layer_rates=layer_rates, full=True)
    for k in range(K):
        on_weights, on_biases = torch.func.jacrev(lambda w, b, k=k: plain_forward(mlp, k, w, b or None, x[k]), (0, 1))(
            [w[k] for w in mlp.weights], [b[k] for b in mlp.biases or []]
        )
        expected = sum(
            layer_rates[i, k] * torch.einsum("akm,bjm->akbj", j.flatten(2), j.flatten(2))
            for jacobians in (on_weights, on_biases)
            for i, j in enumerate(jacobians)
            if i + 1 in mlp.trainable
        )
        assert relative(full[k], expected) < 1e-12
    averaged = empirical_ntk(mlp, x, layer_rates=layer_rates)
    assert relative(averaged, full.diagonal(dim1=2, dim2=4).mean(-1)) < 1e-12
    ones = torch.ones(mlp.L + 1, K, dtype=torch.float64)
    assert torch.equal(empirical_ntk(mlp, x[0]), empirical_ntk(mlp, x[:1].expand(K, -1, -1), layer_rates=ones))


def test_narrowed_stacks_train_the_members_they_show():
    whole, part, (x, y) = random_stack(), random_stack(), batch()
    whole.step(x, y, "mse")
    part.narrow(1, 2).step(x[1:], y[1:], "mse")
    for a, b, start in zip(whole.weights, part.weights, random_stack().weights, strict=True):
        assert relative(b[1:], a[1:]) < 1e-13
        assert torch.equal(b[0], start[0])


def test_training_in_chunks_changes_nothing(monkeypatch):
    x, y = normal((20, SIZES[0]), "data"), normal((20, SIZES[-1]), "targets")
    results = []
    for cache in (2**30, 1):
        monkeypatch.setattr(training, "CACHE_BYTES", cache)
        mlp = random_stack(members=7)
        batches = Batches(x, y, 4, 12, [0, 1, 2, 0, 1, 2, 5])
        results.append((train(mlp, batches, "mse", record=(0, 5, 11)), *mlp.weights))
    for a, b in zip(*results, strict=True):
        assert relative(a, b) < 1e-12
    losses = results[0][0]
    assert losses.shape == (7, 3)
    assert relative(mlp.weights[0], random_stack(members=7).weights[0]) > 1e-2
    first_x, first_y = batches[0]
    assert relative(losses[:, 0], loss("mse")(random_stack(members=7).predict(first_x), first_y)) < 1e-12
    with pytest.raises(ValueError, match=r"record = \[12\] names steps outside 0..11"):
        train(mlp, batches, "mse", record=(12,))
    with pytest.raises(ValueError, match="batches are for 7 members, the stack has 3"):
        train(random_stack(), batches, "mse")


def test_a_diverging_member_leaves_its_neighbours_alone():
    x, y = batch()
    rates = torch.tensor([[0.01, 1e6, 0.01]], dtype=torch.float64).expand(3, 3).contiguous()
    packed, alone = random_stack("identity"), random_stack("identity")
    packed.set_rates(rates)
    alone.set_rates(0.01)
    for name in ["xent", "mse"] * 30:
        packed.step(x, y, name)
        alone.step(x, y, name)
    outputs = packed.predict(x)
    assert not bool(outputs[1].isfinite().any())
    assert relative(outputs[[0, 2]], alone.predict(x)[[0, 2]]) < 1e-10


def test_chunks_cover_all_members_evenly():
    for members in (0, 1, 7, 64, 100):
        for size in (1, 3, 64, 1000):
            parts = [list(range(members))[part] for part in chunks(members, size)]
            assert [k for part in parts for k in part] == list(range(members))
            lengths = [len(part) for part in parts]
            assert all(0 < length <= size for length in lengths)
            assert not lengths or max(lengths) - min(lengths) <= 1


def test_chunks_shrink_with_the_networks_but_never_vanish():
    found = [members_per_chunk((64, n, n, 10), 32) for n in (16, 64, 256, 1024, 8192)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 1
    assert members_per_chunk((64, 64, 64, 10), 32, torch.float64) == pytest.approx(found[1] / 2, abs=1)
    assert members_per_chunk((64, 64, 64, 10), 32, device="cuda") > 10**6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [torch.ones(1, 2, 3)]}, "two or more weights"),
        ({"weights": [torch.ones(1, 2, 3), torch.ones(1, 4, 5)]}, r"\(1, 2, 3\) and \(1, 4, 5\) do not fit together"),
        ({"weights": [torch.ones(1, 2, 3), torch.ones(2, 4, 2)]}, "do not fit together"),
        ({"multipliers": torch.ones(3, 2)}, r"multipliers must be \[layers, members\] = \[2, 1\], got \[3, 2\]"),
        ({"rates": torch.ones(2)}, r"rates must be \[layers, members\] = \[2, 1\], got \[2\]"),
        ({"biases": [torch.ones(1, 3)]}, r"biases must be \[K, out\] per layer"),
        ({"trainable": (0, 1)}, r"trainable = \(0, 1\) must name layers in 1..2"),
        ({"trainable": ()}, "at least one"),
    ],
)
def test_a_stack_names_shapes_that_do_not_fit(arguments, message):
    weights = arguments.pop("weights", [torch.ones(1, 2, 3), torch.ones(1, 4, 2)])
    with pytest.raises(ValueError, match=message):
        StackedMLP(weights, "tanh", **arguments)
