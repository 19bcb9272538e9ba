from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from theory.curvature.tiers import (
    TIERS,
    class_directions,
    cross_directions,
    row_weights,
    spectra,
    tiers,
    without_class,
)
from theory.ensemble import normal, stream

K, N, D, H, k = 3, 14, 4, 3, 4
M = H * D + k * H


def outputs(theta: Tensor, x: Tensor) -> Tensor:
    """A tanh network with one hidden layer, [N, k] from [M]."""
    return torch.tanh(x @ theta[: H * D].view(H, D).T) @ theta[H * D :].view(k, H).T


@pytest.fixture(scope="module")
def network() -> tuple[Tensor, Tensor]:
    """Outputs [K, N, k] and their Jacobians [K, N, k, M], by autograd."""
    theta, x = normal((K, M), "theta"), normal((N, D), "x")
    f = torch.stack([outputs(t, x) for t in theta])
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda t: outputs(t, x), t) for t in theta])
    return 2 * f, 2 * jacobians


def class_gradients(jacobians: Tensor, p: Tensor, loss: str) -> Tensor:
    """J_iᵀ(e_a − p_i), or J_iᵀe_a for the squared error, [K, N, a, M]."""
    if loss == "mse":
        return jacobians
    return jacobians - torch.einsum("zna,znam->znm", p, jacobians).unsqueeze(2)


def rows_of(jacobians: Tensor, p: Tensor, loss: str) -> Tensor:
    """B as defined, [K, N·k, M]."""
    g = class_gradients(jacobians, p, loss)
    return ((p / p.shape[1]).sqrt().unsqueeze(3) * g).flatten(1, 2)


LABELS = {
    "shared": torch.arange(N) % k,
    "per member": torch.randint(0, k, (K, N), generator=stream("labels")),
    "class 1 empty": torch.tensor([0, 2, 3, 0, 2, 3, 3, 3, 0, 0, 2, 2, 3, 0]),
    "one class": torch.full((N,), 2),
}


def case(network: tuple[Tensor, Tensor], loss: str, labels: str) -> tuple[Tensor, Tensor, Tensor]:
    f, jacobians = network
    p = row_weights(f, loss)
    return rows_of(jacobians, p, loss), p, LABELS[labels]


def by_definition(jacobians: Tensor, p: Tensor, labels: Tensor, loss: str) -> dict[str, Tensor]:
    """Papyan's four tiers of one network, written out sum by sum: jacobians [N, k, M], p [N, k], labels [N]."""
    g = class_gradients(jacobians[None], p[None], loss)[0]
    found = {name: torch.zeros(M, M, dtype=torch.float64) for name in TIERS}
    for c in range(k):
        inside = [i for i in range(N) if labels[i] == c]
        weights, means = {}, {}
        for a in range(k):
            W = sum(float(p[i, a]) for i in inside) / N
            if a == c or W == 0:
                continue
            weights[a] = W
            means[a] = sum(p[i, a] * g[i, a] for i in inside) / (N * W)
        w = sum(weights.values())
        if w > 0:
            centre = sum(weights[a] * means[a] for a in means) / w
            found["class"] += w * torch.outer(centre, centre)
            for a in means:
                found["cross"] += weights[a] * torch.outer(means[a] - centre, means[a] - centre)
        for i in inside:
            for a in range(k):
                if a == c:
                    found["diagonal"] += p[i, a] / N * torch.outer(g[i, a], g[i, a])
                elif a in means:
                    found["within"] += p[i, a] / N * torch.outer(g[i, a] - means[a], g[i, a] - means[a])
    return found


both_losses = pytest.mark.parametrize("loss", ["xent", "mse"])
all_labels = pytest.mark.parametrize("labels", LABELS)


@both_losses
def test_rows_of_the_fixture_give_the_gauss_newton_matrix(network: tuple[Tensor, Tensor], loss: str) -> None:
    """(1/N) Σ J_iᵀ A_i J_i with A = diag(p) − ppᵀ, or the identity: what the tiers are to split."""
    rows, p, _ = case(network, loss, "shared")
    A = (
        torch.diag_embed(p) - p.unsqueeze(3) * p.unsqueeze(2)
        if loss == "xent"
        else torch.eye(k).double().expand(K, N, k, k)
    )
    G = torch.einsum("znam,znab,znbl->zml", network[1], A, network[1]) / N
    torch.testing.assert_close(rows.mT @ rows, G, rtol=0, atol=1e-13 * float(G.abs().max()))


@both_losses
@all_labels
def test_tiers_add_up_to_the_gauss_newton_matrix(network: tuple[Tensor, Tensor], loss: str, labels: str) -> None:
    rows, p, label = case(network, loss, labels)
    G = rows.mT @ rows
    total = sum(tiers(rows, p, label).values())
    assert float((total - G).norm()) <= 1e-12 * float(G.norm())


@both_losses
@all_labels
def test_tiers_are_those_of_the_definition(network: tuple[Tensor, Tensor], loss: str, labels: str) -> None:
    rows, p, label = case(network, loss, labels)
    found = tiers(rows, p, label)
    scale = float((rows.mT @ rows).abs().max())
    for member in range(K):
        expected = by_definition(network[1][member], p[member], label.expand(K, N)[member], loss)
        for name in TIERS:
            torch.testing.assert_close(found[name][member], expected[name], rtol=0, atol=1e-13 * scale, msg=name)


@both_losses
@pytest.mark.parametrize(("labels", "present"), [("shared", k), ("class 1 empty", k - 1), ("one class", 1)])
def test_projectors_are_orthogonal_and_of_the_stated_rank(
    network: tuple[Tensor, Tensor], loss: str, labels: str, present: int
) -> None:
    rows, p, label = case(network, loss, labels)
    q, x = class_directions(p, label), cross_directions(p, label)
    assert q.shape == (K, N * k, k)
    assert x.shape == (K, N * k, k * (k - 2))
    P_class, P_cross = q @ q.mT, x @ x.mT
    own = torch.nn.functional.one_hot(label, k).double().flatten()
    P_diagonal = torch.diag(own).expand_as(P_class)
    for P, rank in ((P_class, present), (P_cross, present * (k - 2))):
        torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-14)
        trace = P.diagonal(dim1=1, dim2=2).sum(1)  # the rank of a projector
        torch.testing.assert_close(trace, torch.full_like(trace, rank), rtol=0, atol=1e-12)
    for P, Q in ((P_class, P_cross), (P_class, P_diagonal), (P_cross, P_diagonal)):
        assert float((P @ Q).abs().max()) < 1e-15
    found = tiers(rows, p, label)
    for name, P in (("class", P_class), ("cross", P_cross), ("diagonal", P_diagonal)):
        torch.testing.assert_close(found[name], rows.mT @ P @ rows, rtol=0, atol=1e-14 * float(found[name].norm()))


@both_losses
def test_tiers_do_not_depend_on_the_order_of_the_examples(network: tuple[Tensor, Tensor], loss: str) -> None:
    rows, p, label = case(network, loss, "per member")
    order = torch.randperm(N, generator=stream("order"))
    shuffled = rows.unflatten(1, (N, k))[:, order].flatten(1, 2)
    found, again = tiers(rows, p, label), tiers(shuffled, p[:, order], label[:, order])
    for name in TIERS:
        torch.testing.assert_close(again[name], found[name], rtol=0, atol=1e-14 * float(found[name].norm()))
    # The control: examples of another class do matter.
    assert float((tiers(rows, p, label[:, order])["class"] - found["class"]).norm()) > 0.1 * float(
        found["class"].norm()
    )


@both_losses
@all_labels
def test_spectra_from_the_gram_matrix_are_those_of_the_tiers(
    network: tuple[Tensor, Tensor], loss: str, labels: str
) -> None:
    rows, p, label = case(network, loss, labels)
    found = spectra(rows @ rows.mT, p, label)
    sizes = {"class": k, "cross": k * (k - 2), "within": N * (k - 1), "diagonal": N}
    for name, matrix in tiers(rows, p, label).items():
        assert found[name].shape == (K, sizes[name])
        expected = torch.linalg.eigvalsh(matrix).flip(-1)
        length = max(sizes[name], M)
        padded = [torch.nn.functional.pad(values, (0, length - values.shape[1])) for values in (found[name], expected)]
        padded = [values.sort(descending=True).values for values in padded]
        torch.testing.assert_close(*padded, rtol=0, atol=1e-13 * float(expected.max()))


def test_class_directions_give_the_class_tier_and_the_edge(network: tuple[Tensor, Tensor]) -> None:
    rows, p, label = case(network, "xent", "per member")
    factors = rows.mT @ class_directions(p, label)
    G, found = rows.mT @ rows, tiers(rows, p, label)
    assert factors.shape == (K, M, k)
    torch.testing.assert_close(factors @ factors.mT, found["class"], rtol=0, atol=1e-14)
    v = normal((K, M, 2), "v")
    rest = without_class(lambda u: G @ u, factors)(v)
    torch.testing.assert_close(rest, (G - found["class"]) @ v, rtol=0, atol=1e-13)


def test_softmax_regression_on_orthonormal_class_means() -> None:
    """Closed form: w = γ [I 0], one x_c = e_c per class; q = 1/(e^γ + k − 1), p̂ = 1 − (k − 1) q.

    G = (1/k) Σ_c A_c ⊗ x_c x_cᵀ has k eigenvalues q p̂, of which the class tier holds q p̂² and the diagonal one
    (k − 1) p̂ q² on the same vector, and k(k − 2) eigenvalues q/k, all of the cross tier. Derived from the definitions.
    """
    gamma, d = 2.0, k + 3
    q = 1 / (math.exp(gamma) + k - 1)
    top = 1 - (k - 1) * q
    x = torch.eye(k, d, dtype=torch.float64)
    p = (gamma * torch.eye(k, dtype=torch.float64)).softmax(-1)[None]
    jacobians = torch.einsum("ab,nd->nabd", torch.eye(k, dtype=torch.float64), x).flatten(2)[None]
    rows = rows_of(jacobians, p, "xent")
    found = spectra(rows @ rows.mT, p, torch.arange(k))
    expected = {"class": q * top**2, "cross": q / k, "within": 0.0, "diagonal": (k - 1) * top * q**2}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], torch.full_like(found[name], value), rtol=0, atol=1e-15, msg=name)
    G = torch.linalg.eigvalsh(rows.mT @ rows).flip(-1)[0]
    values = [q * top] * k + [q / k] * (k * (k - 2))
    torch.testing.assert_close(G[: k * (k - 1)].tolist(), values, rtol=1e-13, atol=0)
    assert float(G[k * (k - 1) :].abs().max()) < 1e-16


@pytest.mark.parametrize("vanishing", [0.0, 1e-320])
def test_means_without_weight_are_zero_columns(network: tuple[Tensor, Tensor], vanishing: float) -> None:
    """w_c = 0 for class 0, and W_{1,2} = 0: the other directions stay orthonormal and the identity holds."""
    f, jacobians = network
    p, label = f.softmax(-1), LABELS["shared"]
    p[:, label == 0] = torch.tensor([1.0, vanishing, vanishing, vanishing]).double()
    p[:, label == 1, 2] = vanishing
    rows = rows_of(jacobians, p, "xent")
    q, x = class_directions(p, label), cross_directions(p, label)
    basis = torch.cat([q, x], dim=2)
    gram = basis.mT @ basis
    expected = torch.diag_embed(gram.diagonal(dim1=1, dim2=2).round())
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-14)
    assert q.square().sum(1).round().tolist() == [[0, 1, 1, 1]] * K
    assert x.square().sum((1, 2)).round().tolist() == [2 * (k - 2) + (k - 3)] * K
    G = rows.mT @ rows
    assert float((sum(tiers(rows, p, label).values()) - G).norm()) <= 1e-12 * float(G.norm())


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes_have_no_cross_tier(classes: int) -> None:
    p = normal((2, 5, classes), "p").softmax(-1)
    rows, label = normal((2, 5 * classes, 6), "rows"), torch.arange(5) % classes
    found = tiers(rows, p, label)
    assert cross_directions(p, label).shape == (2, 5 * classes, 0)
    assert not found["cross"].any()
    assert spectra(rows @ rows.mT, p, label)["cross"].shape == (2, 0)
    torch.testing.assert_close(sum(found.values()), rows.mT @ rows, rtol=0, atol=1e-12)


def test_row_weights() -> None:
    f = normal((2, 3, 4), "f")
    torch.testing.assert_close(row_weights(f, "xent"), f.exp() / f.exp().sum(-1, keepdim=True))
    assert bool((row_weights(f, "mse") == 1).all())
    with pytest.raises(ValueError, match="'xent' and 'mse', not 'linear'"):
        row_weights(f, "linear")


GOOD = (torch.full((2, 3, 4), 0.25), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    ("p", "labels", "message"),
    [
        (GOOD[0][0], GOOD[1], r"p must be \[K, N, k\], got \[3, 4\]"),
        (GOOD[0], torch.tensor([0, 1]), r"labels must be integers \[3\] or \[2, 3\], got torch.int64 \[2\]"),
        (GOOD[0], torch.tensor([0.0, 1.0, 2.0]), r"got torch.float32 \[3\]"),
        (GOOD[0], torch.tensor([0, 1, 4]), r"labels must lie in 0\.\.3, got 0\.\.4"),
        (GOOD[0], torch.tensor([-1, 1, 2]), r"labels must lie in 0\.\.3, got -1\.\.2"),
        (GOOD[0] - 1, GOOD[1], "pass probabilities, not logits"),
        (GOOD[0] * float("nan"), GOOD[1], "negative or undefined"),
    ],
)
def test_bad_weights_and_labels(p: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_directions(p, labels)


def test_bad_rows_and_gram() -> None:
    p, labels = GOOD
    with pytest.raises(ValueError, match=r"rows must be \[K, N·k, M\] = \[2, 12, M\], got \[2, 11, 5\]"):
        tiers(torch.zeros(2, 11, 5), p, labels)
    with pytest.raises(ValueError, match=r"gram must be .* = \[2, 12, 12\], got \[2, 3, 3\]"):
        spectra(torch.zeros(2, 3, 3), p, labels)
