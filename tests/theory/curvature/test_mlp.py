"""The closed forms against finite differences, exact identities and invariances; against autograd in test_modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from theory.curvature import mlp as module
from theory.curvature.base import PARTS
from theory.curvature.mlp import MLPCurvature
from theory.ensemble.mlp import StackedMLP
from theory.ensemble.seeding import normal

N = 6


def stack(
    sizes: tuple[int, ...], name: str = "tanh", *, members: int = 1, biases: bool = True, multipliers: bool = False
) -> StackedMLP:
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    return StackedMLP(
        [normal((members, *shape), "w", i) / shape[1] ** 0.5 for i, shape in enumerate(shapes)],
        name,
        biases=[0.3 * normal((members, shape[0]), "b", i) for i, shape in enumerate(shapes)] if biases else None,
        multipliers=0.5 + normal((len(shapes), members), "m").abs() if multipliers else None,
    )


def data(sizes: tuple[int, ...], examples: int = N, *, members: int | None = None) -> tuple[Tensor, Tensor]:
    lead = (examples,) if members is None else (members, examples)
    return normal((*lead, sizes[0]), "x"), torch.softmax(2 * normal((*lead, sizes[-1]), "y"), -1)


def curvature(sizes: tuple[int, ...], loss: str = "xent", *, examples: int = N, **options) -> MLPCurvature:
    return MLPCurvature(stack(sizes, **options), *data(sizes, examples), loss)


def moved(mlp: StackedMLP, theta: Tensor) -> StackedMLP:
    """The same network at other flat parameters [K, M]."""
    K, weights, biases, start = mlp.members, [], [], 0
    for w in mlp.weights:
        weights.append(theta[:, start : start + w[0].numel()].reshape(w.shape))
        start += w[0].numel()
        if mlp.biases is not None:
            biases.append(theta[:, start : start + w.shape[1]].reshape(K, -1))
            start += w.shape[1]
    return StackedMLP(weights, mlp.activation.name, biases=biases or None, multipliers=mlp.multipliers)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def spectrum(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix)


@pytest.mark.parametrize("loss", ["xent", "mse"])
@pytest.mark.parametrize("sizes", [(3, 4, 2), (2, 3, 2, 2, 2)])
def test_hessian_and_gradient_agree_with_finite_differences(sizes, loss):
    mlp, (x, y), step = stack(sizes, members=2, multipliers=True), data(sizes), 1e-5
    c = MLPCurvature(mlp, x, y, loss)
    columns, slopes = [], []
    for j in range(c.parameters):
        change = step * torch.eye(c.parameters, dtype=torch.float64)[j]
        sides = [MLPCurvature(moved(mlp, c.theta + sign * change), x, y, loss) for sign in (1, -1)]
        columns.append((sides[0].gradient() - sides[1].gradient()) / (2 * step))
        slopes.append((c.loss(c.theta + change) - c.loss(c.theta - change)) / (2 * step))
        assert torch.equal(sides[0].loss(), c.loss(c.theta + change))
    assert float((torch.stack(columns, 2) - c.matrix()).abs().max()) < 1e-7
    assert float((torch.stack(slopes, 1) - c.gradient()).abs().max()) < 1e-7
    assert torch.equal(c.f(), mlp.predict(x))


@pytest.mark.parametrize("loss", ["xent", "mse"])
@pytest.mark.parametrize("biases", [True, False])
def test_products_matrices_rows_and_grams_agree(loss, biases):
    c = curvature((4, 5, 4, 3), loss, members=2, biases=biases, multipliers=True)
    v = normal((2, c.parameters, 3), "v")
    for part in PARTS:
        matrix = c.matrix(part)
        assert torch.equal(matrix, matrix.mT)
        assert relative(c.product(v, part), matrix @ v) < 1e-13
    for part, per_example in (("ggn", 3), ("fisher", 1)):
        B, matrix = c.rows(part), c.matrix(part)
        assert B.shape == (2, N * per_example, c.parameters)
        assert relative(B.mT @ B, matrix) < 1e-13
        assert relative(c.gram(part), B @ B.mT) < 1e-13
        q = normal((2, B.shape[1], 4), "q")
        assert relative(c.adjoint(q, part), B.mT @ q) < 1e-13
        with pytest.raises(ValueError, match=r"row space must be \[K, R, V\] = \[2, "):
            c.adjoint(q[:, 1:], part)
        nonzero = min(B.shape[1:])
        assert relative(spectrum(c.gram(part))[:, -nonzero:], spectrum(matrix)[:, -nonzero:]) < 1e-12
        assert relative(matrix.diagonal(dim1=1, dim2=2).sum(1), B.square().sum((1, 2))) < 1e-13
    assert relative(c.matrix("ggn") + c.matrix("residual"), c.matrix()) < 1e-13


def test_rows_of_the_ggn_are_weighted_logit_gradients():
    """Row i d_o + a is √(p_ia / N) J_iᵀ(e_a − p_i); those of the fisher, g_i / √N, add up to √N times the gradient."""
    c = curvature((3, 4, 3))
    J = MLPCurvature(stack((3, 4, 3)), *data((3, 4, 3)), "mse").rows().view(1, N, 3, -1) * N**0.5
    p = torch.softmax(c.f(), -1)
    expected = (p / N).sqrt().unsqueeze(3) * (J - (p.unsqueeze(3) * J).sum(2, keepdim=True))
    assert relative(c.rows().view_as(expected), expected) < 1e-13
    assert relative(c.rows("fisher").sum(1) / N**0.5, c.gradient()) < 1e-13


def test_chunks_change_nothing(monkeypatch):
    whole = curvature((4, 5, 4, 3), members=2)
    v = normal((2, whole.parameters, 5), "v")
    expected = [(whole.matrix(part), whole.product(v, part)) for part in PARTS]
    for name, size in (("CHUNK_MATRIX", 1), ("CHUNK_PRODUCT", 1), ("CHUNK_VECTORS", 2)):
        monkeypatch.setattr(module, name, size)
    for part, (matrix, product) in zip(PARTS, expected, strict=True):
        assert relative(whole.matrix(part), matrix) < 1e-13
        assert relative(whole.product(v, part), product) < 1e-13


def test_members_have_the_curvature_they_have_alone():
    sizes = (3, 4, 3, 2)
    mlp, (x, y) = stack(sizes, members=3, multipliers=True), data(sizes, members=3)
    together = MLPCurvature(mlp, x, y, "xent")
    for k in range(3):
        alone = MLPCurvature(mlp.narrow(k, 1), x[k], y[k], "xent")
        for part in PARTS:
            assert relative(together.matrix(part)[k], alone.matrix(part)[0]) < 1e-12
        assert relative(together.gram()[k], alone.gram()[0]) < 1e-12
        assert relative(together.gradient()[k], alone.gradient()[0]) < 1e-12
    shared = MLPCurvature(mlp, x[0], y[0], "xent")
    assert relative(shared.matrix(), MLPCurvature(mlp, x[:1].repeat(3, 1, 1), y[0], "xent").matrix()) < 1e-13


def test_a_snapshot_outlives_training():
    sizes = (3, 4, 2)
    mlp, (x, y) = stack(sizes), data(sizes)
    c = MLPCurvature(mlp, x, y, "mse")
    before = c.matrix(), c.loss(), c.product(c.theta.unsqueeze(2))
    mlp.set_rates(0.1)
    mlp.step(x, y, "mse")
    assert all(map(torch.equal, before, (c.matrix(), c.loss(), c.product(c.theta.unsqueeze(2)))))
    assert relative(MLPCurvature(mlp, x, y, "mse").matrix(), before[0]) > 1e-3


def test_rank_bounds_of_the_two_first_terms():
    """rank(G) ≤ min(N (d_o − 1), M − (h + 1)): softmax ignores a shift of all logits, of which the last layer makes
    h + 1 independent ones. Generic networks reach the bounds: 6-7-4 has M = 81 and rank 73.
    """
    few, many = curvature((6, 7, 4), examples=5), curvature((6, 7, 4), examples=60)
    assert many.parameters == 81
    for c, rank in ((few, 5 * 3), (many, 81 - 8)):
        values = spectrum(c.matrix("ggn"))[0]
        assert int((values > 1e-12 * values[-1]).sum()) == rank
    assert int((spectrum(few.matrix("fisher"))[0] > 1e-12).sum()) == 5
    assert torch.linalg.matrix_rank(curvature((6, 7, 4), "mse", examples=5).matrix("ggn")).item() == 5 * 4


@pytest.mark.parametrize("loss", ["xent", "mse"])
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_order_relations_of_the_spectra(name, loss):
    c = curvature((4, 6, 5, 3), loss, name=name)
    H, G, R, F = (c.matrix(part)[0] for part in PARTS)
    values = {key: spectrum(m) for key, m in zip("HGRF", (H, G, R, F), strict=True)}
    noise = 1e-13 * float(values["G"][-1])
    assert float(values["G"][0]) > -noise
    assert float(values["F"][0]) > -noise
    assert float(values["H"][0]) >= float(values["R"][0]) - noise
    assert float((values["H"] - values["G"]).abs().max()) <= float(values["R"].abs().max()) + noise
    assert float(H.trace()) == pytest.approx(float(G.trace() + R.trace()), rel=1e-12)
    assert float(values["R"][0]) < -1e3 * noise  # the relations are not met by R = 0
    # With ReLU and no second derivatives of the activation R couples different layers only.
    if name == "relu":
        assert float(R[:30, :30].abs().max()) < noise < float(R.abs().max())


def test_deep_linear_networks_have_a_residual_and_their_hessian_is_not_the_ggn():
    c = curvature((4, 3, 3), "mse", name="identity")
    assert float(c.matrix("residual").abs().max()) > 0.1 * float(c.matrix("ggn").abs().max())


def test_hidden_units_may_be_permuted():
    sizes, order = (4, 6, 3), torch.tensor([3, 0, 5, 1, 4, 2])
    mlp, (x, y) = stack(sizes, "gelu"), data(sizes)
    swapped = StackedMLP(
        [mlp.weights[0][:, order], mlp.weights[1][:, :, order]],
        "gelu",
        biases=[mlp.biases[0][:, order], mlp.biases[1]],
    )
    for part in PARTS:
        a, b = (MLPCurvature(net, x, y, "xent").matrix(part) for net in (mlp, swapped))
        assert relative(spectrum(a), spectrum(b)) < 1e-12
        assert relative(a, b) > 0.1


def test_the_loss_is_a_mean_so_examples_may_be_duplicated():
    sizes = (4, 5, 3)
    mlp, (x, y) = stack(sizes), data(sizes)
    once = MLPCurvature(mlp, x, y, "xent")
    twice = MLPCurvature(mlp, torch.cat([x, x]), torch.cat([y, y]), "xent")
    for part in PARTS:
        assert relative(twice.matrix(part), once.matrix(part)) < 1e-12
    nonzero = min(once.parameters, 2 * N)
    assert relative(spectrum(twice.gram())[:, -nonzero:], spectrum(once.gram())[:, -nonzero:]) < 1e-12


def test_rescaling_a_relu_unit_fixes_the_hessian_along_its_tangent():
    """L(c w_in, w_out / c) = L(w) for all w. With D = diag(1 on w_in, -1 on w_out), differentiating ∇L · Dw = 0 gives
    H D w = −D ∇L: at a critical point the tangent D w is a null vector.
    """
    sizes = (4, 5, 3)
    c = curvature(sizes, name="relu", examples=20)
    for unit in range(5):
        D = torch.zeros(c.parameters, dtype=torch.float64)
        D[unit * 4 : unit * 4 + 4] = D[20 + unit] = 1.0
        D[25 + unit : 25 + 15 : 5] = -1.0
        tangent, expected = D * c.theta, -D * c.gradient()
        assert float((c.gradient() * tangent).sum().abs()) < 1e-14
        assert relative(c.product(tangent.unsqueeze(2)).squeeze(2), expected) < 1e-12


def test_shared_data_of_many_small_networks():
    """2-n-n-2 networks have 18, 74, 162, 282, 434 parameters for n = 2, 6, 10, 14, 18 (Sagun et al. 2016, figure 4)."""
    counts = [curvature((2, n, n, 2), members=4).parameters for n in (2, 6, 10, 14, 18)]
    assert counts == [18, 74, 162, 282, 434]
    # 100-30-30-k networks: M = 3960 + 31 k (Sagun et al. 2017, table 1)
    for k in (2, 5, 10, 20, 50):
        assert curvature((100, 30, 30, k), examples=1).parameters == 3960 + 31 * k


def test_single_precision_has_to_be_asked_for():
    sizes = (4, 5, 3)
    exact, mlp, (x, y) = curvature(sizes), stack(sizes), data(sizes)
    single = StackedMLP([w.float() for w in mlp.weights], "tanh", biases=[b.float() for b in mlp.biases])
    rough = MLPCurvature(single, x.float(), y.float(), "xent", precision="float32")
    assert rough.dtype == rough.matrix().dtype == torch.float32
    assert 1e-9 < relative(rough.matrix().double(), exact.matrix()) < 1e-5
    with pytest.raises(
        ValueError, match=r"parameters are float32, .*in float64: convert .*or pass precision='float32'"
    ):
        MLPCurvature(single, x.float(), y.float(), "xent")
    with pytest.raises(ValueError, match="parameters are float64, curvature was asked for in float32"):
        MLPCurvature(mlp, x, y, "xent", precision="float32")
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        MLPCurvature(mlp, x, y, "xent", precision="half")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "linear"}, "unknown loss 'linear'; curvature knows xent, mse"),
        ({"x": torch.ones(N, 4)}, r"x is torch.float32, the parameters are torch.float64"),
        ({"y": torch.ones(N, 3)}, r"y is torch.float32, the parameters are torch.float64"),
        ({"x": torch.ones(N, 5).double()}, r"x must be \[N, d\] or \[K, N, d\] with K = 1, N = 6, d = 4, got \[6, 5\]"),
        ({"x": torch.ones(2, N, 4).double()}, r"x must be .* got \[2, 6, 4\]"),
        ({"x": torch.ones(4).double()}, r"x must be .* got \[4\]"),
        ({"y": torch.ones(N + 1, 3).double() / 3}, r"y must be \[N, d_o\] .*N = 6, d_o = 3, got \[7, 3\]"),
        ({"y": torch.ones(N, 3).double()}, "targets of xent must be probabilities"),
        ({"y": torch.tensor([[2.0, -1.0, 0.0]]).double().expand(N, 3)}, "targets of xent must be probabilities"),
        ({"x": torch.ones(0, 4).double(), "y": torch.ones(0, 3).double()}, "no examples: x is empty"),
    ],
)
def test_misuse_is_named(change, message):
    x, y = data((4, 5, 3))
    arguments = {"x": x, "y": y, "loss": "xent", **change}
    with pytest.raises(ValueError, match=message):
        MLPCurvature(stack((4, 5, 3)), **arguments)


def test_misuse_of_methods_is_named():
    c = curvature((4, 5, 3), members=2)
    v = torch.ones(2, c.parameters, 1, dtype=torch.float64)
    for method in (c.matrix, lambda part: c.product(v, part)):
        with pytest.raises(ValueError, match="unknown part 'hesian'; there is hessian, ggn, residual, fisher"):
            method("hesian")
    for method in (c.rows, c.gram):
        with pytest.raises(ValueError, match="unknown part 'hessian'; there is ggn, fisher"):
            method("hessian")
    with pytest.raises(ValueError, match=r"vectors must be \[K, M, V\] = \[2, 43, V\], got \[2, 43\]"):
        c.product(v[..., 0])
    with pytest.raises(ValueError, match=r"v is torch.float32"):
        c.product(v.float())
    with pytest.raises(ValueError, match=r"theta must be \[K, M\] = \[2, 43\], got \[43\]"):
        c.loss(c.theta[0])
    with pytest.raises(ValueError, match=r"curvature needs all layers trainable, layers \(2,\) of 1..2 are"):
        MLPCurvature(StackedMLP(stack((4, 5, 3)).weights, "tanh", trainable=[2]), *data((4, 5, 3)), "xent")


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_every_device_gives_the_same(device):
    sizes = (4, 6, 5, 3)
    mlp, (x, y) = stack(sizes, members=2), data(sizes)
    here = MLPCurvature(mlp, x, y, "xent")
    there = MLPCurvature(
        StackedMLP([w.to(device) for w in mlp.weights], "tanh", biases=[b.to(device) for b in mlp.biases]),
        x.to(device),
        y.to(device),
        "xent",
    )
    v = normal((2, here.parameters, 2), "v")
    for part in PARTS:
        matrix = there.matrix(part)
        assert matrix.device.type == device
        assert relative(matrix.cpu(), here.matrix(part)) < 1e-12
        assert relative(there.product(v.to(device), part).cpu(), here.product(v, part)) < 1e-12
    assert relative(there.gram().cpu(), here.gram()) < 1e-12
