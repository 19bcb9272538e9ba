"""The natural expansion score against closed forms, other routes, other curvatures and what it must not change with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from theory.curvature.mlp import MLPCurvature
from theory.ensemble.mlp import StackedMLP
from theory.ensemble.seeding import normal, stream
from theory.growth.kfac import layer
from theory.growth.network import Architecture, GrowingCNN, initial
from theory.growth.scores import (
    KINDS,
    ROOTED,
    Root,
    circulating_score,
    coordinates,
    cotangents,
    curvature_score,
    diagonal_score,
    diagonal_terms,
    expansion_score,
    explicit_score,
    gram,
    kernel_score,
    limit,
    projection_score,
    root,
    woodbury_score,
)
from theory.growth.solves import squares
from theory.growth.taps import Tap, patches, pull_back, stacked_rows, with_parameters

N, C = 12, 4


def labels(n: int, classes: int, *name: int) -> Tensor:
    drawn = torch.randint(classes, (n,), generator=stream("labels", n, classes, *name))
    return functional.one_hot(drawn, classes).double()


def linear(w: Tensor, x: Tensor, *, bias: bool = True) -> tuple[Tensor, list[Tap]]:
    """Outputs f = x wᵀ (+ b, the last column of w) of one member, [1, N, C], and their tap."""
    weight, b = (w[:, :-1], w[:, -1]) if bias else (w, torch.zeros_like(w[:, 0]))
    f = (x @ weight.T + b)[None].requires_grad_()
    names = ("weight", "bias") if bias else ("weight",)
    return f, [Tap("readout", "linear", names, x[None], f)]


def mlp_taps(mlp: StackedMLP, x: Tensor) -> tuple[Tensor, list[Tap]]:
    """The taps of a tanh MLP with biases, all members."""
    assert mlp.biases is not None
    h, taps = x.expand(mlp.members, *x.shape), []
    for index, (w, b) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        z = torch.baddbmm(b.unsqueeze(1), h, w.mT).requires_grad_()
        taps.append(Tap(f"layer{index}", "linear", (f"w{index}", f"b{index}"), h.detach(), z))
        h = torch.tanh(z)
    return z, taps


@pytest.fixture(scope="module")
def net() -> GrowingCNN:
    return initial(Architecture((1, 8, 8), C, (2, 3, 2), (1, 0, 0), mixed=4, hidden=5), [0, 1], dtype=torch.float64)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return normal((N, 1, 8, 8), "images")


@pytest.fixture(scope="module")
def y() -> Tensor:
    return labels(N, C)


# ------------------------------------------------------------------------------------------------------ closed forms


def test_least_squares_the_score_is_twice_what_can_be_gained() -> None:
    x, y = normal((N, 5), "x"), normal((N, 3), "y")
    w = normal((3, 6), "w")
    f, taps = linear(w, x)
    design = np.hstack([x.numpy(), np.ones((N, 1))])
    best = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    least = 0.5 * np.square(design @ best - y.numpy()).sum(1).mean()
    loss = 0.5 * float((f[0] - y).detach().square().sum(1).mean())
    for kind in ("euclid", "ggn"):
        form = root(kind, f, taps, y, "mse")
        for score in (
            expansion_score(kind, f, taps, y, "mse"),
            explicit_score(form),
            kernel_score(squares([form.rows]), form.w),
        ):
            assert float(score) == pytest.approx(2 * (loss - least), rel=1e-10)
        assert float(limit(kind, f, y, "mse")) == pytest.approx(2 * loss, rel=1e-12)


def test_biases_alone_at_uniform_outputs_see_the_class_frequencies() -> None:
    counts = torch.tensor([7, 3, 1, 1])
    y = functional.one_hot(torch.repeat_interleave(torch.arange(4), counts), 4).double()
    f, taps = linear(torch.zeros(4, 2, dtype=torch.float64), torch.zeros(12, 1, dtype=torch.float64))
    frequencies = counts.double() / counts.sum()
    assert float(expansion_score("ggn", f, taps, y)) == pytest.approx(
        4 * float(frequencies.square().sum()) - 1, rel=1e-12
    )
    assert float(limit("ggn", f, y)) == pytest.approx(4 - 1, rel=1e-12)


def test_the_limit_is_the_mean_of_what_the_probabilities_leave() -> None:
    f = torch.stack([normal((N, C), "f"), 60 * normal((N, C), "g")])
    y = labels(N, C)
    p = (torch.softmax(f, -1) * y).sum(-1)
    torch.testing.assert_close(limit("ggn", f, y), (1 / p - 1).mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(limit("emp_full", f, y), torch.ones(2, dtype=torch.float64))
    certain = torch.tensor([[[0.0, 2000.0], [2000.0, 0.0]]], dtype=torch.float64)  # a probability that underflows to 0
    assert float(limit("ggn", certain, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))) == 0


def test_kfac_is_exact_where_inputs_and_gradients_are_independent() -> None:
    """At uniform outputs the model's own gradients are the same for all inputs, so the Fisher matrix is S ⊗ A."""
    x, y = normal((N, 3), "x"), labels(N, C)
    f, taps = linear(torch.zeros(C, 4, dtype=torch.float64), x)
    full = expansion_score("ggn", f, taps, y)
    torch.testing.assert_close(expansion_score("kfac", f, taps, y), full, rtol=1e-10, atol=0)
    damped = expansion_score("ggn", f, taps, y, damping=1e-2)
    torch.testing.assert_close(expansion_score("kfac", f, taps, y, damping=1e-2), damped, rtol=1e-10, atol=0)
    f, taps = linear(normal((C, 4), "w"), x)  # elsewhere it is not
    assert float((expansion_score("kfac", f, taps, y) / expansion_score("ggn", f, taps, y) - 1).abs()) > 1e-3


def test_kronecker_factors_are_means_over_the_model_s_own_labels(net: GrowingCNN, x: Tensor, y: Tensor) -> None:
    f, taps = net.taps(x)
    w = coordinates("ggn", f.detach(), y)
    for tap in (tap for tap in taps if tap.kind in ("conv", "linear")):
        found = layer(tap, pull_back(f, [tap], cotangents("ggn", f.detach(), y))[0], w)
        logp = torch.log_softmax(f, -1)
        s = torch.zeros_like(found.s)
        for label in range(C):
            (at,) = torch.autograd.grad(logp[..., label].sum(), tap.outputs, retain_graph=True)
            at = at.flatten(3) if at.dim() == 5 else at.unsqueeze(3)
            weight = logp[..., label].exp().detach() / N / at.shape[3]
            s += torch.einsum("kn,kncs,knds->kcd", weight, at, at)
        torch.testing.assert_close(found.s, s, rtol=1e-10, atol=1e-14)
        read = patches(tap)
        read = torch.cat([read, torch.ones_like(read[:, :, :1])], 2) if tap.bias else read
        torch.testing.assert_close(found.a, torch.einsum("knis,knjs->kij", read, read) / N, rtol=1e-10, atol=1e-14)
        weight = root("ggn", f, [tap], y).gradient[:, : found.g.shape[1] * tap.fan_in]
        torch.testing.assert_close(found.g[:, :, : tap.fan_in].flatten(1), weight, rtol=1e-10, atol=1e-14)


# ----------------------------------------------------------------------------------------------------------- routes


@pytest.mark.parametrize("kind", ROOTED)
def test_all_routes_agree(net: GrowingCNN, x: Tensor, y: Tensor, kind: str) -> None:
    f, taps = net.taps(x)
    form = root(kind, f, taps, y)
    torch.testing.assert_close(squares([form.rows]), torch.bmm(form.rows, form.rows.mT), rtol=1e-12, atol=1e-15)
    for damping in (0.0, 1e-3, 1.0):
        exact = projection_score(form, damping)
        assert bool((exact > 0).all())
        assert bool((exact <= form.limit * (1 + 1e-10)).all())
        for other in (
            explicit_score(form, damping),
            kernel_score(squares([form.rows]), form.w, damping),
        ):
            if damping == 0 and kind == "euclid":
                continue  # its smallest singular values are 1e-7 of the largest: the squares of those are rounding
            torch.testing.assert_close(other, exact, rtol=1e-8, atol=0)
        ours = expansion_score(kind, f, taps, y, damping=damping)
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=0)
        if damping:
            torch.testing.assert_close(woodbury_score(form, damping), exact, rtol=1e-8, atol=0)


@pytest.mark.parametrize("kind", ROOTED)
def test_damping_takes_away_and_less_of_it_takes_away_less(net: GrowingCNN, x: Tensor, y: Tensor, kind: str) -> None:
    form = root(kind, *net.taps(x), y)
    least = float(torch.linalg.svdvals(form.rows).min())
    damping = [*sorted([1.0, 1e-2, 1e-4, 1e-6 * least**2], reverse=True), 0.0]
    scores = torch.stack([projection_score(form, delta) for delta in damping])
    assert bool((scores.diff(dim=0) >= -1e-12).all())
    torch.testing.assert_close(scores[-2], scores[-1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ROOTED)
def test_the_loss_falls_at_the_rate_of_the_score(net: GrowingCNN, x: Tensor, y: Tensor, kind: str) -> None:
    f, taps = net.taps(x)
    form, damping = root(kind, f, taps, y), 1e-3
    F = torch.bmm(form.rows.mT, form.rows) + damping * torch.eye(form.rows.shape[2], dtype=torch.float64)
    step = torch.linalg.solve(F, form.gradient)

    def loss(t: float) -> Tensor:
        moved, at = dict(net.parameters), 0
        for name in (name for tap in with_parameters(taps) for name in tap.parameters):
            size = moved[name][0].numel()
            moved[name] = moved[name] - t * step[:, at : at + size].view_as(moved[name])
            at += size
        outputs = GrowingCNN(net.architecture, moved, net.buffers).forward(x)
        return (torch.logsumexp(outputs, 2) - (outputs * y).sum(2)).mean(1)

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close(slope, -expansion_score(kind, f, taps, y, damping=damping), rtol=1e-4, atol=0)


def test_the_gram_matrix_needs_no_rows(net: GrowingCNN, x: Tensor) -> None:
    f, taps = net.taps(x)
    where = with_parameters(taps)
    v = normal((3, *f.shape), "v")  # N V = 36 rows, no multiple of the blocks
    deltas = pull_back(f, where, v)
    rows = stacked_rows(where, deltas)
    torch.testing.assert_close(gram(where, deltas), torch.bmm(rows, rows.mT), rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match="no rows: nothing to multiply"):
        squares([])


@pytest.mark.parametrize("loss", ["xent", "mse"])
def test_the_score_is_that_of_the_curvature_library(loss: str) -> None:
    shapes = [(2, 6, 5), (2, 3, 6)]
    mlp = StackedMLP(
        [normal(s, "w", i) / s[2] ** 0.5 for i, s in enumerate(shapes)],
        "tanh",
        biases=[0.3 * normal(s[:2], "b", i) for i, s in enumerate(shapes)],
    )
    x, y = normal((N, 5), "x"), labels(N, 3)
    curvature = MLPCurvature(mlp, x, y, loss)
    f, taps = mlp_taps(mlp, x)
    torch.testing.assert_close(curvature.gradient(), root("ggn", f, taps, y, loss).gradient, rtol=1e-10, atol=1e-13)
    for kind in ("ggn", "emp_full"):
        for damping in (0.0, 1e-3):
            ours = expansion_score(kind, f, taps, y, loss, damping)
            theirs = curvature_score(curvature, y, loss, kind=kind, damping=damping)
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0)
    with pytest.raises(ValueError, match="has the rows of ggn and emp_full, not of 'euclid'"):
        curvature_score(curvature, y, loss, kind="euclid")


# ----------------------------------------------------------------------------------------- what does not change it


def test_only_the_diagonal_depends_on_how_parameters_are_written(net: GrowingCNN, x: Tensor, y: Tensor) -> None:
    for kind in ROOTED:
        form = root(kind, *net.taps(x), y)
        turn = torch.eye(form.rows.shape[2], dtype=torch.float64) + 0.1 * normal((form.rows.shape[2],) * 2, "turn") / 10
        turned = Root(form.rows @ turn, form.w)
        torch.testing.assert_close(projection_score(turned), projection_score(form), rtol=1e-7, atol=0)
        if kind == "emp_full":
            change = diagonal_score(turned.rows) / diagonal_score(form.rows) - 1
            assert bool((change.abs() > 1e-2).all())


def test_emp_full_is_how_well_gradients_explain_a_constant() -> None:
    x, y = normal((N, 2), "x"), labels(N, 2)
    f, taps = linear(normal((2, 3), "w"), x)
    g = root("emp_full", f, taps, y).rows[0].numpy()
    fitted = g @ np.linalg.lstsq(g, np.ones(N), rcond=None)[0]
    assert float(expansion_score("emp_full", f, taps, y)) == pytest.approx(np.square(fitted).mean(), rel=1e-10)
    assert float(expansion_score("emp_full", f, taps, y)) < 0.9


def test_emp_full_saturates_with_more_parameters_than_examples(net: GrowingCNN, x: Tensor, y: Tensor) -> None:
    form = root("emp_full", *net.taps(x), y)
    assert torch.linalg.matrix_rank(form.rows).tolist() == [N, N]
    torch.testing.assert_close(expansion_score("emp_full", *net.taps(x), y), torch.ones(2, dtype=torch.float64))


def test_the_diagonal_counts_parameters(net: GrowingCNN, x: Tensor, y: Tensor) -> None:
    rows = root("emp_full", *net.taps(x), y).rows
    terms = diagonal_terms(rows)
    assert bool((terms >= 0).all())
    assert bool((terms <= 1 + 1e-12).all())
    torch.testing.assert_close(expansion_score("emp_diag", *net.taps(x), y), terms.sum(1))
    same = root("emp_full", *net.taps(x[:1].expand(N, -1, -1, -1)), y[:1].expand(N, -1)).rows
    alive = (same[:, 0].abs() > 1e-12).sum(1).double()
    torch.testing.assert_close(diagonal_score(same, 1e-40), alive, rtol=1e-10, atol=0)


def test_the_circulating_score_is_a_count_of_gradients_that_are_not_small(
    net: GrowingCNN, x: Tensor, y: Tensor
) -> None:
    g = root("emp_full", *net.taps(x), y).rows * N**0.5
    for batch in (1, 3):
        of_batches = g.view(2, N // batch, batch, -1).mean(2)
        F = of_batches.square().mean(1)
        torch.testing.assert_close(circulating_score(g / N**0.5, batch), (F / (F + 1e-5)).mean(1))
    # Its value knows no direction: gradients of opposite sign, which cancel in g, leave it as it is.
    signs = torch.where(torch.arange(N) % 2 == 0, 1.0, -1.0).double()[:, None]
    torch.testing.assert_close(circulating_score(g * signs), circulating_score(g))
    with pytest.raises(ValueError, match="batch = 5 does not divide the 12 examples"):
        circulating_score(g, 5)


# ------------------------------------------------------------------------------------------------------- what it refuses


def test_refusals(net: GrowingCNN, x: Tensor, y: Tensor) -> None:
    f, taps = net.taps(x)
    with pytest.raises(ValueError, match="unknown kind 'hessian' of score; there is " + ", ".join(KINDS)):
        expansion_score("hessian", f, taps, y)
    with pytest.raises(ValueError, match="unknown kind 'kfac' of a score that has rows"):
        root("kfac", f, taps, y)
    with pytest.raises(ValueError, match="unknown kind 'kfac' of a score that has rows"):
        coordinates("kfac", f.detach(), y)
    with pytest.raises(ValueError, match=r"targets .* are \[2, 12, 4\] and \[12, 3\]"):
        expansion_score("ggn", f, taps, y[:, :3])
    with pytest.raises(ValueError, match=r"targets are torch\.float32, the outputs are torch\.float64"):
        expansion_score("ggn", f, taps, y.float())
    with pytest.raises(ValueError, match="must be probabilities"):
        expansion_score("ggn", f, taps, 2 * y)
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        expansion_score("ggn", f, taps, y, "hinge")
    with pytest.raises(ValueError, match="damping = -1 must be at least zero"):
        expansion_score("ggn", f, taps, y, damping=-1)
    form = root("ggn", f, taps, y)
    with pytest.raises(ValueError, match=r"damping = 0\.0 must be positive"):
        woodbury_score(form, 0.0)
    with pytest.raises(ValueError, match="not positive definite: damping = 1e-30 is too small"):
        kernel_score(
            squares([form.rows, -form.rows]) - torch.eye(form.rows.shape[1], dtype=torch.float64), form.w, 1e-30
        )
    with pytest.raises(ValueError, match=r"coordinates \[K, R\] are \[1, 2, 3\], \[1, 3\]"):
        Root(torch.zeros(1, 2, 3), torch.zeros(1, 3))
