"""The stylised model of prefix learning: its kernel and gradient against automatic differentiation, and its symmetries."""

from __future__ import annotations

import pytest
import torch
from torch.func import jacrev

from theory.ensemble import normal
from theory.ntk_attention.stylised import INITS, descend, gradient, initial, kernel, output_scale, outputs, weights

N, D, M = 3, 2, 10


@pytest.fixture
def problem():
    """Two members, one of each initialisation, with other inputs, targets and output scales."""
    W, a = initial(INITS, [0, 1], M, D, sigma=1.2)
    X, Y = normal((2, N, D), "test", "X"), normal((2, N, D), "test", "Y")
    c = torch.tensor([1.0, M**-0.5], dtype=torch.float64)
    return W, a, X, Y, c


def plainly(W, a, X):
    """F of one member as it is defined."""
    chances = torch.softmax(X @ W.T, -1)
    return len(W) * torch.einsum("nm,m,md->nd", chances, a, W)


def test_outputs_are_what_the_definition_says(problem):
    W, a, X, _, _ = problem
    for k in range(2):
        torch.testing.assert_close(outputs(W, a, X)[k], plainly(W[k], a[k], X[k]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [None, 1, 3, M])
def test_the_kernel_is_that_of_automatic_differentiation(problem, block):
    W, a, X, _, _ = problem
    found = kernel(W, a, X, block=block)
    for k in range(2):
        J = jacrev(plainly)(W[k], a[k], X[k]).reshape(N * D, -1)
        torch.testing.assert_close(found[k], J @ J.T / M, rtol=0, atol=1e-12)


def test_the_gradient_is_that_of_automatic_differentiation(problem):
    W, a, X, Y, c = problem
    losses, found = gradient(W, a, X, Y, c)
    for k in range(2):
        own = W[k].clone().requires_grad_()
        loss = (c[k] * plainly(own, a[k], X[k]) - Y[k]).square().sum() / 2
        loss.backward()
        torch.testing.assert_close(found[k], own.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(losses[k], loss.detach(), rtol=1e-12, atol=0)


def test_a_single_vector_has_no_attention_to_move():
    """With m = 1 the softmax is 1: F = a w, and the kernel is the identity between outputs, whatever the inputs."""
    W, a = initial(["iid"], [3], 1, D)
    X = normal((1, N, D), "test", "X")
    torch.testing.assert_close(outputs(W, a, X), (a[..., None] * W).expand(1, N, D), rtol=0, atol=1e-15)
    pattern = torch.ones(N, N, dtype=torch.float64).kron(torch.eye(D, dtype=torch.float64))
    torch.testing.assert_close(kernel(W, a, X)[0], pattern, rtol=0, atol=1e-14)


def test_twins_of_opposite_sign_cancel():
    W, a = initial(["sym"], [0], 1000, D)
    X = normal((1, N, D), "test", "X")
    assert float(outputs(W, a, X).abs().max()) < 1e-10
    independent = initial(["iid"], [0], 1000, D)
    assert float(outputs(*independent, X).abs().max()) > 1


def test_the_order_of_prefix_vectors_does_not_matter(problem):
    W, a, X, Y, c = problem
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    torch.testing.assert_close(outputs(W[:, order], a[:, order], X), outputs(W, a, X), rtol=0, atol=1e-12)
    torch.testing.assert_close(kernel(W[:, order], a[:, order], X), kernel(W, a, X), rtol=0, atol=1e-12)
    moved = gradient(W[:, order], a[:, order], X, Y, c)[1]
    torch.testing.assert_close(moved, gradient(W, a, X, Y, c)[1][:, order], rtol=0, atol=1e-12)


def test_a_common_shift_leaves_the_attention_but_not_the_output(problem):
    W, a, X, _, _ = problem
    shift = torch.tensor([0.3, -1.1], dtype=torch.float64)
    torch.testing.assert_close(weights(W + shift, X), weights(W, X), rtol=1e-12, atol=1e-12)
    assert float((outputs(W + shift, a, X) - outputs(W, a, X)).abs().max()) > 0.1


def test_masses_are_as_many_equal_vectors():
    """Two vectors, three times and once, beside the four of them; a gradient is that of each single one."""
    W, a = initial(["iid"], [5], 2, D)
    X, Y = normal((1, N, D), "test", "X"), normal((1, N, D), "test", "Y")
    mass, index = torch.tensor([1.5, 0.5], dtype=torch.float64), torch.tensor([0, 0, 0, 1])
    many_W, many_a = W[:, index], a[:, index]
    half = torch.tensor([0.5], dtype=torch.float64)  # F sums m of them: 4 instead of 2
    torch.testing.assert_close(2 * outputs(W, a, X, mass), outputs(many_W, many_a, X), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel(W, a, X, mass), kernel(many_W, many_a, X), rtol=1e-12, atol=1e-12)
    found, whole = gradient(W, a, X, Y, 2 * half, mass)[1], gradient(many_W, many_a, X, Y, half)[1]
    torch.testing.assert_close(found[:, index], 2 * whole, rtol=1e-12, atol=1e-12)


def test_descent_follows_the_gradient_and_leaves_its_start_alone(problem):
    W, a, X, Y, c = problem
    before, eta = W.clone(), torch.tensor([1e-3, 2e-3], dtype=torch.float64)
    run = descend(W, a, X, Y, c, eta, 2)
    assert torch.equal(W, before)
    first, slope = gradient(W, a, X, Y, c)
    at = W - eta[:, None, None] * slope
    second, slope = gradient(at, a, X, Y, c)
    torch.testing.assert_close(run.W, at - eta[:, None, None] * slope, rtol=1e-12, atol=1e-14)
    third, _ = gradient(run.W, a, X, Y, c)
    torch.testing.assert_close(run.losses, torch.stack([first, second, third]), rtol=1e-12, atol=0)
    assert torch.equal(descend(W, a, X, Y, c, eta, 0).W, W)


def test_a_member_starts_the_same_alone_and_in_a_pack():
    W, a = initial(["iid", "sym", "iid"], [0, 1, 2], 6, 3, sigma=0.7)
    for k, (kind, seed) in enumerate(zip(("iid", "sym", "iid"), (0, 1, 2), strict=True)):
        alone = initial([kind], [seed], 6, 3, sigma=0.7)
        assert torch.equal(alone[0][0], W[k])
        assert torch.equal(alone[1][0], a[k])
    assert not torch.equal(W[0], W[2])
    assert torch.equal(W[1, :3], W[1, 3:])
    assert torch.equal(a[1, :3], -a[1, 3:])
    assert set(a.unique().tolist()) == {-1.0, 1.0}
    large, _ = initial(["iid"], [0], 40_000, 1, sigma=0.7)
    assert float(large.std()) == pytest.approx(0.7, rel=0.02)


def test_output_scales():
    assert [output_scale(scale, 16) for scale in ("paper", "ntk", "mean-field")] == [1.0, 0.25, 0.0625]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="unknown output scale 'mup': choose one of paper, ntk, mean-field"):
        output_scale("mup", 8)
    with pytest.raises(ValueError, match="unknown initialisation 'zero': choose one of iid, sym"):
        initial(["zero"], [0], 8, 2)
    with pytest.raises(ValueError, match="m = 7 must be even"):
        initial(["sym"], [0], 7, 2)
    with pytest.raises(ValueError, match="sigma = 0 must be positive"):
        initial(["iid"], [0], 8, 2, sigma=0)
    W, a = initial(["iid"], [0], 8, 2)
    X, c = torch.zeros(1, 1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="block = 0 must be at least 1"):
        kernel(W, a, X, block=0)
    with pytest.raises(ValueError, match="steps = -1 must not be negative"):
        descend(W, a, X, X, c, c, -1)
