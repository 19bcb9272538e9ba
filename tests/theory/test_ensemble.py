from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theory.ensemble import (
    ACTIVATIONS,
    LOSSES,
    Batches,
    Ensemble,
    FullBatch,
    activation,
    batch_indices,
    gaussian_mlp,
    loss,
    normal,
    snapshots,
    stream,
)

K, B = 3, 5

REFERENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "erf": torch.erf,
    "gelu": nn.functional.gelu,
    "identity": lambda h: h,
}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# Random streams and data order


def test_a_stream_depends_on_every_part_and_on_nothing_else():
    names = [
        ("init", 0),
        ("init", 1),
        ("init", "1"),
        ("init", 0, 0),
        ("order", 0),
        ("init", (0,)),
        ("init0",),
        (0, "init"),
    ]
    draws = [normal((64,), *name) for name in names]
    torch.manual_seed(7)  # the global generator plays no part
    for name, draw in zip(names, draws, strict=True):
        assert torch.equal(draw, normal((64,), *name))
    for i, a in enumerate(draws):
        for b in draws[i + 1 :]:
            assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(64)
            assert not torch.equal(a, b)


def test_the_whole_state_of_a_stream_is_hashed_and_used():
    words = stream("a", 1).get_state()[24 : 24 + 8 * 624].view(torch.int64).numpy()
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words.astype(np.uint32), "pos": 624}}
    drawn = torch.empty(700, dtype=torch.int64).random_(2**24, generator=stream("a", 1))
    np.testing.assert_array_equal(drawn.numpy(), twister.random_raw(700) % 2**24)
    # A 32-bit seed would fix each word by the one before it.
    from_seed = (1812433253 * (words[:-1] ^ (words[:-1] >> 30)) + np.arange(1, 624)) % 2**32
    assert (from_seed == words[1:]).mean() < 0.01


def test_normal_draws_are_standard_and_equal_in_every_dtype():
    x = normal((400, 500), "moments")
    standard_error = 1 / math.sqrt(x.numel())
    assert abs(float(x.mean())) < 5 * standard_error
    assert abs(float(x.square().mean()) - 1) < 5 * math.sqrt(2) * standard_error
    assert abs(float(x.pow(4).mean()) - 3) < 5 * math.sqrt(96) * standard_error
    assert x.dtype == torch.float64
    assert torch.equal(normal((400, 500), "moments", dtype=torch.float32).double(), x)


@pytest.mark.parametrize("part", [1.5, None, True, b"x"])
def test_a_stream_refuses_parts_without_exact_text(part):
    with pytest.raises(TypeError, match="cannot name a random stream"):
        stream("init", part)
    with pytest.raises(ValueError, match="at least one part"):
        stream()


@pytest.mark.parametrize(("examples", "size", "steps"), [(20, 5, 13), (23, 5, 9), (8, 8, 3), (5, 1, 11), (9, 4, 0)])
def test_batches_are_drawn_without_replacement_within_each_epoch(examples, size, steps):
    rows = batch_indices(examples, size, steps, data_seed=3)
    assert rows.shape == (steps, size)
    assert rows.dtype == torch.int64
    per_epoch = examples // size
    epochs = [rows[start : start + per_epoch].flatten() for start in range(0, steps, per_epoch)]
    for epoch in epochs:
        assert len(epoch.unique()) == len(epoch)
        assert bool(((epoch >= 0) & (epoch < examples)).all())
    if len(epochs) > 1 and len(epochs[0]) > 4:
        assert not torch.equal(epochs[0], epochs[1][: len(epochs[0])])
    assert torch.equal(rows[: steps // 2], batch_indices(examples, size, steps // 2, data_seed=3))
    if steps:
        assert not torch.equal(rows, batch_indices(examples, size, steps, data_seed=4))


def test_batch_indices_name_what_is_wrong():
    with pytest.raises(ValueError, match="batch = 6 must lie between 1 and the number of examples, 5"):
        batch_indices(5, 6, 1, 0)
    with pytest.raises(ValueError, match="steps = -1"):
        batch_indices(5, 2, -1, 0)


def test_members_with_equal_data_seeds_see_the_same_batches():
    x, y = normal((12, 4), "data"), normal((12, 2), "targets")
    batches = Batches(x, y, 5, 4, [8, 9, 8])
    for step in range(len(batches)):
        rows = [batch_indices(12, 5, 4, seed)[step] for seed in (8, 9, 8)]
        xs, ys = batches[step]
        assert torch.equal(xs, torch.stack([x[r] for r in rows]))
        assert torch.equal(ys, torch.stack([y[r] for r in rows]))
        assert torch.equal(batches.members(slice(1, 3))[step][0], torch.stack([x[r] for r in rows[1:]]))
        assert torch.equal(Batches(x, y, 5, 4, [8, 8])[step][0], x[rows[0]])
    with pytest.raises(ValueError, match=r"x \[12, 4\] and y \[11, 2\] must pair up"):
        Batches(x, y[1:], 5, 4, [0])


def test_members_may_have_data_of_their_own():
    x, y = normal((3, 12, 4), "data"), normal((3, 12, 2), "targets")
    batches = Batches(x, y, 5, 4, [8, 9, 8])
    for step in range(len(batches)):
        rows = [batch_indices(12, 5, 4, seed)[step] for seed in (8, 9, 8)]
        xs, ys = batches[step]
        assert torch.equal(xs, torch.stack([own[r] for own, r in zip(x, rows, strict=True)]))
        assert torch.equal(ys, torch.stack([own[r] for own, r in zip(y, rows, strict=True)]))
        assert torch.equal(batches.members(slice(1, 3))[step][0], torch.stack([x[1, rows[1]], x[2, rows[2]]]))
    with pytest.raises(ValueError, match="must pair up"):
        Batches(x, y, 5, 4, [8, 9])
    with pytest.raises(ValueError, match="must pair up"):
        FullBatch(x, y, 4, members=2)


@pytest.mark.parametrize("full", [True, False])
def test_snapshots_are_the_stack_after_each_step_and_no_member_knows_its_pack(full):
    seeds, x, y = [3, 1, 4], normal((3, 12, 6), "data"), normal((3, 12, 2), "targets")

    def taken(rows: list[int], record: list[int]):
        own = [seeds[row] for row in rows]
        mlp = gaussian_mlp((6, 5, 2), "tanh", own, 0.5, rates=0.1)
        batches = FullBatch(x[rows], y[rows], 7, len(rows)) if full else Batches(x[rows], y[rows], 4, 7, own)
        return snapshots(mlp, batches, "mse", record), mlp

    (start, middle, end), trained = taken([0, 1, 2], [0, 3, 7])
    for index in range(3):
        (alone,), _ = taken([index], [3])
        for many, one in zip([*middle.weights, *middle.biases], [*alone.weights, *alone.biases], strict=True):
            assert relative(many[index : index + 1], one) < 1e-12
    assert all(
        torch.equal(a, b)
        for a, b in zip(start.weights, gaussian_mlp((6, 5, 2), "tanh", seeds, 0.5).weights, strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(end.weights, trained.weights, strict=True))
    assert not torch.equal(middle.weights[0], end.weights[0])
    for record in ([3, 3], [8], [-1]):
        with pytest.raises(ValueError, match=r"must be increasing steps within 0\.\.7"):
            taken([0], record)


def test_a_gaussian_mlp_has_the_same_standard_deviation_everywhere():
    mlp = gaussian_mlp((300, 200, 100), "relu", [0, 1], 0.1)
    for tensor in (*mlp.weights, *mlp.biases):
        assert abs(float(tensor.std()) / 0.1 - 1) < 4 / math.sqrt(2 * tensor.numel())
        assert not torch.equal(tensor[0], tensor[1])
    other = gaussian_mlp((300, 200, 100), "relu", [0, 1], 0.1, stream="other")
    assert not torch.equal(mlp.weights[0], other.weights[0])


# Activations and losses


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_and_their_derivatives_agree_with_autograd(name, dtype):
    h = torch.cat([torch.linspace(-30, 30, 101), torch.linspace(-1e-3, 1e-3, 8)]).to(
        dtype
    )  # 0 itself is a kink of relu
    h = h[h != 0].requires_grad_()
    expected = REFERENCE[name](h)
    (slope,) = torch.autograd.grad(expected.sum(), h)
    tolerance = 4 * torch.finfo(dtype).eps
    assert float((activation(name)(h.detach()) - expected).detach().abs().max()) <= 30 * tolerance
    assert float((activation(name).derivative(h.detach()) - slope).abs().max()) <= tolerance


def test_relu_has_derivative_zero_at_its_kink():
    assert float(activation("relu").derivative(torch.zeros(1))) == 0.0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_chi_is_the_derivative_of_the_loss(name):
    f = normal((K, B, 4), "f").requires_grad_()
    y = torch.softmax(normal((K, B, 4), "y"), -1)
    per_example = loss(name).per_example(f * 1.0, y)
    (slope,) = torch.autograd.grad(per_example.sum(), f)
    for layout in (f.detach(), f.detach().mT.contiguous().mT):
        assert relative(loss(name).chi(layout, y, torch.empty_like(layout)), slope) < 1e-14
    assert torch.allclose(loss(name)(f, y), per_example.mean(-1))


def test_losses_agree_with_their_definitions():
    f, y = normal((B, 4), "f"), torch.softmax(normal((B, 4), "y"), -1)
    assert torch.allclose(loss("mse")(f, y), ((f - y) ** 2).sum() / (2 * B))
    assert torch.allclose(loss("linear")(f, y), -(f * y).sum() / B)
    assert torch.allclose(loss("xent")(f, y), nn.functional.cross_entropy(f, y))


@pytest.mark.parametrize("what", [activation, loss])
def test_an_unknown_name_lists_the_known_ones(what):
    with pytest.raises(ValueError, match=r"unknown (activation|loss) 'swish'; there is .*(relu|mse)"):
        what("swish")


# Ensemble


def make_models(count: int, seed: int = 0) -> list[nn.Module]:
    models = []
    for k in range(count):
        model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)).double()
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(normal(tuple(p.shape), "model", seed, k, i) / 2)
        models.append(model)
    return models


OPTIMISERS: dict[str, tuple[dict, Callable]] = {
    "sgd": ({}, lambda p, lr: torch.optim.SGD(p, lr=lr)),
    "momentum": ({"momentum": 0.9}, lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)),
    "adam": ({"optimizer": "adam", "betas": (0.8, 0.99)}, lambda p, lr: torch.optim.Adam(p, lr=lr, betas=(0.8, 0.99))),
}


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
@pytest.mark.parametrize("chunk", [None, 2])
def test_an_ensemble_trains_like_its_members_one_by_one(name, chunk):
    options, build = OPTIMISERS[name]
    lrs = [0.01, 0.1, 0.05]
    models = make_models(3)
    ensemble = Ensemble(models, lrs, chunk=chunk, **options)
    optimisers = [build(model.parameters(), lr) for model, lr in zip(models, lrs, strict=True)]
    mse = nn.functional.mse_loss
    for step in range(6):
        x, y = normal((3, 5, 4), "x", step), normal((3, 5, 2), "y", step)
        losses = ensemble.step(mse, x, y)
        for k, (model, optimiser) in enumerate(zip(models, optimisers, strict=True)):
            optimiser.zero_grad()
            value = mse(model(x[k]), y[k])
            value.backward()
            optimiser.step()
            assert float(losses[k]) == pytest.approx(float(value.detach()), rel=1e-10)
    x = normal((7, 4), "test")
    expected = torch.stack([model(x) for model in models]).detach()
    assert relative(ensemble.predict(x), expected) < 1e-10
    assert relative(ensemble.predict(x.expand(3, -1, -1), shared=False), expected) < 1e-10
    models[0].load_state_dict(ensemble.state_dict(2))
    assert relative(models[0](x).detach(), expected[2]) < 1e-10


def test_a_member_of_an_ensemble_does_not_depend_on_its_pack():
    def final(members: range, *, shared: bool) -> Tensor:
        models = make_models(64)
        ensemble = Ensemble([models[k] for k in members], [0.01 * (1 + k % 5) for k in members], optimizer="adam")
        for step in range(5):
            x, y = normal((64, 5, 4), "x", step), normal((64, 5, 2), "y", step)
            data = (x[3], y[3]) if shared else (x[list(members)], y[list(members)])
            ensemble.step(nn.functional.mse_loss, *data, shared=shared)
        return ensemble.predict(normal((7, 4), "test"))[list(members).index(3)]

    for shared in (False, True):
        alone = final(range(3, 4), shared=shared)
        assert relative(final(range(4), shared=shared), alone) < 1e-10
        assert relative(final(range(64), shared=shared), alone) < 1e-10


def test_an_ensemble_refuses_batch_norm_that_updates_itself():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"1 is a BatchNorm1d in training mode.*use GroupNorm"):
        Ensemble([model], 0.1)
    ensemble = Ensemble([model.eval()], 0.1)
    x = torch.ones(3, 4)
    assert torch.allclose(ensemble.predict(x)[0], model(x).detach())
    assert Ensemble([nn.BatchNorm1d(4, track_running_stats=False)], 0.1).predict(x).shape == (1, 3, 4)


def test_dropout_differs_between_members():
    models = [nn.Dropout(0.5) for _ in range(2)]
    ensemble = Ensemble([nn.Sequential(nn.Linear(64, 64), m) for m in models], 0.1)
    dropped = ensemble.predict(torch.ones(1, 64)) == 0
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (0, {}, "at least one model"),
        (2, {"optimizer": "lion"}, "unknown optimizer 'lion'; there is 'sgd' and 'adam'"),
        (3, {"lr": [0.1, 0.2]}, "lr has 2 entries, the ensemble has 3 members"),
    ],
)
def test_an_ensemble_names_what_is_wrong(models, options, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(make_models(models), options.pop("lr", 0.1), **options)
