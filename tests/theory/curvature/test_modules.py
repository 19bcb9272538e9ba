"""Curvature of modules by autograd: an oracle for the closed forms, and exact answers of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from theory.curvature.base import PARTS
from theory.curvature.mlp import MLPCurvature
from theory.curvature.modules import ModuleCurvature
from theory.ensemble.mlp import StackedMLP
from theory.ensemble.seeding import normal

N = 5
PLAIN = {"tanh": nn.Tanh(), "relu": nn.ReLU(), "gelu": nn.GELU(), "identity": nn.Identity()}


class Erf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


class Scale(nn.Module):
    def __init__(self, m: Tensor) -> None:
        super().__init__()
        self.register_buffer("m", m)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.m


def stack(sizes: tuple[int, ...], name: str, *, members: int, biases: bool) -> StackedMLP:
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    return StackedMLP(
        [normal((members, *shape), "w", i) / shape[1] ** 0.5 for i, shape in enumerate(shapes)],
        name,
        biases=[0.3 * normal((members, shape[0]), "b", i) for i, shape in enumerate(shapes)] if biases else None,
        multipliers=0.5 + normal((len(shapes), members), "m").abs(),
    )


def as_modules(mlp: StackedMLP) -> list[nn.Module]:
    """The members of a stack as modules, parameters in the same order."""
    models = []
    for k in range(mlp.members):
        layers: list[nn.Module] = []
        for i, w in enumerate(mlp.weights):
            layer = nn.Linear(w.shape[2], w.shape[1], bias=mlp.biases is not None, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(w[k])
                if mlp.biases is not None:
                    layer.bias.copy_(mlp.biases[i][k])
            layers += [layer, Scale(mlp.multipliers[i, k]), PLAIN.get(mlp.activation.name, Erf())]
        models.append(nn.Sequential(*layers[:-1]))
    return models


def linear(d: int, k: int, *, bias: bool = False) -> nn.Linear:
    model = nn.Linear(d, k, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for index, p in enumerate(model.parameters()):
            p.copy_(normal(tuple(p.shape), "linear", index))
    return model


class Conv(nn.Module):
    """A convolutional net with 47 parameters for 6 × 6 images and three classes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.readout = nn.Linear(8, 3)
        self.double()
        with torch.no_grad():
            for index, p in enumerate(self.parameters()):
                p.copy_(0.4 * normal(tuple(p.shape), "conv", seed, index))

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(nn.functional.max_pool2d(torch.tanh(self.conv(x)), 2).flatten(1))


def images(examples: int = N) -> tuple[Tensor, Tensor]:
    return normal((examples, 1, 6, 6), "images"), torch.arange(examples) % 3


def vectors(examples: int = N) -> tuple[Tensor, Tensor]:
    return normal((examples, 4), "x"), torch.softmax(2 * normal((examples, 3), "y"), -1)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("loss", ["xent", "mse"])
@pytest.mark.parametrize("name", ["tanh", "relu", "erf", "gelu"])
@pytest.mark.parametrize(
    ("hidden", "biases", "members"), [((4,), True, 3), ((4, 3), False, 1), ((3, 4), True, 2), ((3, 2, 3), True, 1)]
)
def test_closed_forms_and_autograd_agree(hidden, biases, members, name, loss):
    sizes = (3, *hidden, 3)
    mlp = stack(sizes, name, members=members, biases=biases)
    x, y = normal((members, N, 3), "x"), torch.softmax(normal((members, N, 3), "y"), -1)
    closed, auto = MLPCurvature(mlp, x, y, loss), ModuleCurvature(as_modules(mlp), x, y, loss)
    assert torch.equal(closed.theta, auto.theta)
    for part in PARTS:
        scale = closed.matrix(part if part != "residual" else "hessian").abs().max()
        assert float((closed.matrix(part) - auto.matrix(part)).abs().max() / scale) < 1e-12
    for part in ("ggn", "fisher"):
        assert relative(closed.rows(part), auto.rows(part)) < 1e-12
        assert relative(closed.gram(part), auto.gram(part)) < 1e-12
    elsewhere = closed.theta + 0.1
    for a, b in (
        (closed.f(), auto.f()),
        (closed.loss(), auto.loss()),
        (closed.loss(elsewhere), auto.loss(elsewhere)),
        (closed.gradient(), auto.gradient()),
    ):
        assert relative(a, b) < 1e-12
    assert (closed.parameters, closed.examples, closed.outputs) == (auto.parameters, auto.examples, auto.outputs)


def test_convolutional_nets_agree_with_finite_differences():
    (x, y), step, M = images(), 1e-5, 47
    c = ModuleCurvature([Conv(0), Conv(1)], x, y, "xent")
    assert (c.members, c.parameters, c.outputs) == (2, M, 3)
    H = c.matrix()
    gradients, slopes = [], []
    for j in range(M):
        change = step * torch.eye(M, dtype=torch.float64)[j]
        slopes.append((c.loss(c.theta + change) - c.loss(c.theta - change)) / (2 * step))
        for sign in (1, -1):
            moved = []
            for k in range(2):
                moved.append(Conv())
                nn.utils.vector_to_parameters(c.theta[k] + sign * change, moved[k].parameters())
            gradients.append(ModuleCurvature(moved, x, y, "xent").gradient())
    columns = torch.stack([(a - b) / (2 * step) for a, b in zip(gradients[::2], gradients[1::2], strict=True)], 2)
    assert float((columns - H).abs().max()) < 1e-7
    assert float((torch.stack(slopes, 1) - c.gradient()).abs().max()) < 1e-7
    B = c.rows()
    assert relative(B.mT @ B, c.matrix("ggn")) < 1e-12
    v = normal((2, M, 3), "v")
    for part in PARTS:
        assert relative(c.product(v, part), c.matrix(part) @ v) < 1e-12


def test_chunks_and_duplicated_examples_change_nothing():
    x, y = images()
    whole = ModuleCurvature([Conv(0), Conv(1)], x, y, "xent")
    small = ModuleCurvature([Conv(0), Conv(1)], x, y, "xent", chunk=6)  # three examples of two members
    twice = ModuleCurvature([Conv(0), Conv(1)], torch.cat([x, x]), torch.cat([y, y]), "xent")
    for part in PARTS:
        assert relative(small.matrix(part), whole.matrix(part)) < 1e-12
        assert relative(twice.matrix(part), whole.matrix(part)) < 1e-12
    assert relative(small.rows(), whole.rows()) < 1e-12
    for a, b in ((small.f(), whole.f()), (small.loss(), whole.loss()), (small.gradient(), whole.gradient())):
        assert relative(a, b) < 1e-12


def test_members_have_the_curvature_they_have_alone():
    x, y = normal((2, N, 1, 6, 6), "images"), torch.arange(2 * N).view(2, N) % 3
    together = ModuleCurvature([Conv(0), Conv(1)], x, y, "xent")
    for k in range(2):
        alone = ModuleCurvature(Conv(k), x[k], y[k], "xent")
        assert all(relative(together.matrix(part)[k], alone.matrix(part)[0]) < 1e-12 for part in PARTS)


def test_softmax_regression_has_no_residual():
    c = ModuleCurvature(linear(4, 3, bias=True), *vectors(20), "xent")
    assert relative(c.matrix(), c.matrix("ggn")) < 1e-14
    assert float(c.matrix("residual").abs().max()) == 0.0


@pytest.mark.parametrize(("k", "gamma"), [(3, 0.0), (4, 1.0), (5, 3.0)])
def test_softmax_regression_on_orthonormal_class_means(k, gamma):
    """With W = γ (1 0), q = 1 / (e^γ + k − 1) and p̂ = 1 − (k−1) q: k eigenvalues q p̂, k (k−2) of q / k, the rest 0.

    The loss gradients of the k examples are orthogonal, of length² (k−1) k q²: the empirical Fisher has k eigenvalues
    (k−1) q² and is smaller by (k−1) q / p̂, which vanishes at interpolation.
    """
    d = k + 2
    model = nn.Linear(d, k, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(gamma * torch.eye(k, d))
    c = ModuleCurvature(model, torch.eye(k, d, dtype=torch.float64), torch.arange(k), "xent")
    q = 1 / (torch.tensor(gamma, dtype=torch.float64).exp() + k - 1)
    p = 1 - (k - 1) * q
    zeros = torch.zeros(d * k, dtype=torch.float64)
    expected = zeros.clone()
    expected[: k * (k - 2)], expected[k * (k - 2) : k * (k - 1)] = q / k, q * p
    assert torch.allclose(torch.linalg.eigvalsh(c.matrix()[0]), expected.sort().values, atol=1e-15, rtol=1e-12)
    fisher = zeros.clone()
    fisher[-k:] = (k - 1) * q**2
    assert torch.allclose(torch.linalg.eigvalsh(c.matrix("fisher")[0]), fisher, atol=1e-15, rtol=1e-12)


def test_losses_may_be_functions_and_scale_the_spectrum():
    (x, y), models = images(), [Conv(0), Conv(1)]
    named = ModuleCurvature(models, x, y, "xent")
    given = ModuleCurvature(models, x, y, lambda f, y: 3 * nn.functional.cross_entropy(f, y))
    for part, power in zip(PARTS, (1, 1, 1, 2), strict=True):
        assert relative(given.matrix(part), 3**power * named.matrix(part)) < 1e-12
    assert relative(given.loss(), 3 * named.loss()) < 1e-14
    B = given.rows()
    assert relative(B.mT @ B, given.matrix("ggn")) < 1e-12
    concave = ModuleCurvature(linear(4, 3), *vectors(), lambda f, y: -(f - y).square().sum(-1).mean())
    assert relative(concave.matrix(), concave.matrix("ggn")) < 1e-14
    with pytest.raises(ValueError, match="not convex in the outputs"):
        concave.rows()


def test_labels_and_one_hot_targets_are_the_same():
    x, y = images()
    one_hot = nn.functional.one_hot(y, 3).double()
    a, b = (ModuleCurvature(Conv(), x, targets, "xent") for targets in (y, one_hot))
    assert torch.equal(a.matrix(), b.matrix())


def test_a_snapshot_outlives_training():
    model, (x, y) = linear(4, 3), vectors()
    c = ModuleCurvature(model, x, y, "xent")
    before = c.matrix()
    with torch.no_grad():
        model.weight.mul_(2.0)
    assert torch.equal(c.matrix(), before)
    assert relative(ModuleCurvature(model, x, y, "xent").matrix(), before) > 0.1


def test_loaders_are_means_over_examples_whatever_the_batches():
    x, y = images(7)
    whole = ModuleCurvature(Conv(), x, y, "xent")
    for size in (1, 3, 7):  # batches of 3, 3 and 1
        loaded = ModuleCurvature.from_loader(Conv(), DataLoader(TensorDataset(x, y), batch_size=size), "xent")
        assert torch.equal(loaded.matrix(), whole.matrix())
    single = DataLoader(TensorDataset(x.float(), y), batch_size=3)
    assert relative(ModuleCurvature.from_loader([Conv()], single, "xent").matrix(), whole.matrix()) < 1e-5


def test_loaders_that_change_are_refused():
    x, y = images(12)
    shuffled = DataLoader(TensorDataset(x, y), 4, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"other data in its second pass \(batch 0\): switch off shuffling"):
        ModuleCurvature.from_loader(Conv(), shuffled, "xent")
    draws = iter(range(100))

    class Augmented(TensorDataset):
        def __getitem__(self, index):
            a, b = super().__getitem__(index)
            return a + next(draws), b

    with pytest.raises(ValueError, match="switch off shuffling and random augmentation"):
        ModuleCurvature.from_loader(Conv(), DataLoader(Augmented(x, y), 12), "xent")
    with pytest.raises(ValueError, match=r"second pass \(batch 1\)"):  # a generator is empty the second time
        ModuleCurvature.from_loader(Conv(), _exhausting([(x, y), (x, y)]), "xent")
    with pytest.raises(ValueError, match="no examples: the loader is empty"):
        ModuleCurvature.from_loader(Conv(), [], "xent")
    with pytest.raises(ValueError, match=r"must yield pairs \(x, y\) of tensors, got dict"):
        ModuleCurvature.from_loader(Conv(), [{"x": x, "y": y}], "xent")


class _exhausting:
    """Yields one batch fewer in every pass."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __iter__(self):
        batches, self.batches = self.batches, self.batches[:-1]
        return iter(batches)


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5)


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        f = super().forward(x)
        return f - f.mean(0)


def frozen() -> nn.Module:
    model = linear(4, 3, bias=True)
    model.bias.requires_grad_(False)
    return model


def with_layer(layer: nn.Module) -> nn.Module:
    return nn.Sequential(linear(4, 3), layer.double())


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (lambda: linear(4, 3).float(), "the parameters are float32, .* pass precision='float32'"),
        (lambda: nn.Sequential(linear(4, 3), linear(3, 3).float()), "parameters must share one dtype and device"),
        (list, "at least one model"),
        (nn.Tanh, "Tanh has no parameters"),
        (frozen, "parameters without requires_grad: bias"),
        (lambda: [linear(4, 3), linear(4, 2)], "one class and shape, number 1 differs from number 0"),
        (lambda: [linear(4, 3), with_layer(nn.Tanh())], "one class and shape, number 1 differs from number 0"),
        (lambda: with_layer(nn.BatchNorm1d(3)), r"BatchNorm '1' normalises by the batch.*call .eval\(\)"),
        (lambda: with_layer(nn.BatchNorm1d(3, track_running_stats=False)).eval(), "keep track_running_stats"),
        (lambda: with_layer(nn.Dropout(0.5)), r"Dropout '1' is active \(p = 0.5\): call .eval\(\)"),
        (lambda: Noisy(4, 3).double(), "not deterministic, two forward passes differ"),
        (lambda: Centred(4, 3).double(), "mixes examples: the output of one example depends on the others"),
        (
            lambda: with_layer(nn.Unflatten(1, (1, 3))),
            r"must map \[n, ...\] to \[n, d_o\], \[5, 4\] became \[5, 1, 3\]",
        ),
    ],
)
def test_models_without_a_sound_curvature_are_refused(models, message):
    with pytest.raises(ValueError, match=message):
        ModuleCurvature(models(), *vectors(), "xent")


def test_fixed_normalisation_and_inactive_dropout_are_fine():
    model = nn.Sequential(linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double().eval()
    c = ModuleCurvature([model, model], *vectors(), "mse")
    assert torch.equal(c.matrix()[0], c.matrix()[1])
    assert c.parameters == 12 + 3 + 3
    ModuleCurvature(with_layer(nn.Dropout(0.0)), *vectors(), "mse")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "unknown loss 'hinge'; curvature knows xent, mse"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum")}, "every example twice it goes from .*use reduction='mean'"),
        ({"loss": lambda f, y: (f - y).square().mean(1)}, r"one number for a batch, got shape \[5\]"),
        ({"loss": lambda f, y: (f - y).square().sum(1).max()}, "means over two parts of a batch do not combine"),
        ({"x": torch.ones(N, 4)}, "x is torch.float32, the parameters are torch.float64"),
        ({"y": torch.ones(N, 3)}, "y is torch.float32, the parameters are torch.float64"),
        ({"y": torch.zeros(N, 3).long(), "loss": "mse"}, "y is torch.int64, the parameters are torch.float64"),
        ({"x": torch.ones(N + 1, 4).double()}, r"x \[6, 4\] and y \[5, 3\] do not pair"),
        ({"y": torch.ones(1, N, 3).double() / 3}, r"need the leading K = 1, x is \[5, 4\]"),
        ({"y": torch.ones(N, 2).double() / 2}, r"y \[5, 2\] does not fit outputs \[N, 3\]"),
        ({"y": torch.ones(N, 3).double()}, "targets of xent must be probabilities"),
        ({"y": torch.tensor([0, 1, 2, 3, 0])}, r"classes in y must lie in 0..2, got 0..3"),
        (
            {"x": torch.ones(0, 4).double(), "y": torch.ones(0, 3).double()},
            r"no examples: x is \[0, 4\], y is \[0, 3\]",
        ),
        ({"chunk": 0}, "chunk = 0 must be positive"),
        ({"precision": "float32"}, "the parameters are float64, curvature was asked for in float32"),
    ],
)
def test_data_and_losses_that_do_not_fit_are_refused(change, message):
    x, y = vectors()
    arguments = {"x": x, "y": y, "loss": "xent", **change}
    with pytest.raises(ValueError, match=message):
        ModuleCurvature(linear(4, 3), **arguments)


def test_misuse_of_methods_is_named(monkeypatch):
    c = ModuleCurvature(linear(4, 3), *vectors(), "xent")
    with pytest.raises(ValueError, match="unknown part 'fischer'; there is hessian, ggn, residual, fisher"):
        c.matrix("fischer")
    with pytest.raises(ValueError, match="unknown part 'residual'; there is ggn, fisher"):
        c.rows("residual")
    with pytest.raises(ValueError, match=r"vectors must be \[K, M, V\] = \[1, 12, V\], got \[1, 11, 1\]"):
        c.product(torch.ones(1, 11, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"theta must be \[K, M\] = \[1, 12\], got \[12\]"):
        c.loss(c.theta[0])
    skew = normal((1, 12, 12), "skew")
    monkeypatch.setattr(c, "product", lambda v, part: skew @ v)
    with pytest.raises(RuntimeError, match=r"the hessian is not symmetric: .* a derivative inside the model is wrong"):
        c.matrix()


def test_products_agree_with_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    x, y = images(7)
    model, batches = Conv(), [(x[:4], y[:4]), (x[4:], y[4:])]
    c = ModuleCurvature.from_loader(model, batches, "xent")
    v = normal((1, c.parameters, 2), "v")
    for part, operator in (("hessian", curvlinops.HessianLinearOperator), ("ggn", curvlinops.GGNLinearOperator)):
        peer = operator(model, nn.CrossEntropyLoss(reduction="mean"), list(model.parameters()), batches)
        assert relative(c.product(v, part)[0], peer @ v[0]) < 1e-12


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_every_device_gives_the_same(device):
    x, y = images()
    here = ModuleCurvature([Conv(0), Conv(1)], x, y, "xent")
    there = ModuleCurvature([Conv(0).to(device), Conv(1).to(device)], x.to(device), y.to(device), "xent")
    for part in PARTS:
        assert there.matrix(part).device.type == device
        assert relative(there.matrix(part).cpu(), here.matrix(part)) < 1e-12
