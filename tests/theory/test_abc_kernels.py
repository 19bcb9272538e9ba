from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import erf

from theory.abc import kernels
from theory.abc.kernels import ACTIVATIONS, kernel_gradient_descent, nngp_ntk

POINTS = np.array([[1.0, 0.0, 0.5], [0.3, -0.8, 1.1], [-1.0, 0.4, 0.2]])


@pytest.fixture
def rows() -> np.ndarray:
    """Twelve inputs of E|x|² = 1."""
    return np.random.default_rng(0).normal(size=(12, 5)) / math.sqrt(5)


# Values of neural-tangents 0.6.5 (float64, W_std = √d in the first layer and 1 after it, no biases) at POINTS.
@pytest.mark.parametrize(
    ("activation", "depth", "which", "i", "j", "value"),
    [
        ("relu", 1, "nngp", 0, 1, 0.4982751953),
        ("relu", 1, "ntk", 0, 1, 0.7888852062),
        ("relu", 1, "ntk", 0, 2, -0.0813245608),
        ("relu", 2, "ntk", 0, 1, 0.5592728045),
        ("relu", 3, "ntk", 0, 1, 0.3564774906),
        ("erf", 1, "nngp", 0, 0, 0.5064965711),
        ("erf", 1, "ntk", 0, 1, 0.5571823595),
        ("erf", 2, "ntk", 0, 2, -0.7271446768),
        ("erf", 3, "ntk", 0, 1, 0.5212746326),
    ],
)
def test_neural_tangents_constants(activation: str, depth: int, which: str, i: int, j: int, value: float) -> None:
    sigma, theta = nngp_ntk(POINTS, POINTS, depth, activation)
    assert (sigma if which == "nngp" else theta)[i, j] == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_relu_on_the_diagonal(rows: np.ndarray, depth: int) -> None:
    sigma, theta = nngp_ntk(rows, rows, depth, "relu")
    squared = np.sum(rows**2, axis=1)
    np.testing.assert_allclose(np.diag(sigma), squared / 2**depth, rtol=1e-12)
    np.testing.assert_allclose(np.diag(theta), (depth + 1) * squared / 2**depth, rtol=1e-12)


def test_relu_next_to_the_diagonal_keeps_its_digits() -> None:
    """At angle a, Θ falls short of its diagonal by a/2π to first order; arccos cannot see a = 1e-9 at all."""
    angle = 1e-9
    near = np.array([[math.cos(angle), math.sin(angle)]])
    _, theta = nngp_ntk(np.array([[1.0, 0.0]]), near, 1, "relu")
    assert (1.0 - theta.item()) / (angle / (2 * math.pi)) == pytest.approx(1.0, rel=1e-5)
    assert math.acos(near[0, 0]) == 0.0


def test_relu_at_opposite_and_zero_inputs() -> None:
    x = np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    sigma, theta = nngp_ntk(x, x, 1, "relu")
    np.testing.assert_allclose(sigma, [[2.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]], atol=1e-15)
    np.testing.assert_allclose(theta, [[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], atol=1e-15)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_erf_through_the_quadrature_is_its_closed_form(rows: np.ndarray, depth: int) -> None:
    layer = kernels._quadrature_layer(erf, lambda z: 2 / math.sqrt(math.pi) * np.exp(-z * z))
    x1, x2 = 1.5 * rows[:5], rows[5:]
    for computed, exact in zip(
        kernels._layered_kernels(x1, x2, depth, layer), nngp_ntk(x1, x2, depth, "erf"), strict=True
    ):
        np.testing.assert_allclose(computed, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "erf"])
@pytest.mark.parametrize(("q1", "q2", "rho"), [(0.5, 0.5, 0.3), (0.4, 1.0, -0.8), (1.0, 0.7, 0.999), (0.3, 0.9, -1.0)])
def test_one_layer_against_a_plain_two_dimensional_sum(activation: str, q1: float, q2: float, rho: float) -> None:
    """120 x 120 Gauss-Hermite nodes over (g1, g2) with u = √q1 g1, v = √q2 (ρ g1 + √(1-ρ²) g2)."""
    g, weights = hermegauss(120)
    weights = weights / weights.sum()
    u = math.sqrt(q1) * g[:, None]
    v = math.sqrt(q2) * (rho * g[:, None] + math.sqrt(1 - rho**2) * g[None, :])
    phi, dphi = {
        **kernels._SMOOTH,
        "erf": (erf, lambda z: 2 / math.sqrt(math.pi) * np.exp(-z * z)),
    }[activation]
    value, slope = (float(weights @ (f(u) * f(v)) @ weights) for f in (phi, dphi))
    x1 = np.array([[math.sqrt(q1), 0.0]])
    x2 = math.sqrt(q2) * np.array([[rho, math.sqrt(1 - rho**2)]])
    sigma, theta = nngp_ntk(x1, x2, 1, activation)
    assert sigma.item() == pytest.approx(value, abs=1e-8)
    assert theta.item() == pytest.approx(value + rho * math.sqrt(q1 * q2) * slope, abs=2e-8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_belong_to_their_function(activation: str) -> None:
    """Price's theorem: dΣ'/dΣ = Σ̇, here by central differences in the angle between two unit inputs."""
    a, step = 0.9, 1e-5
    one = np.array([[1.0, 0.0]])

    def at(angle: float) -> tuple[float, float]:
        sigma, theta = nngp_ntk(one, np.array([[math.cos(angle), math.sin(angle)]]), 1, activation)
        return sigma.item(), theta.item()

    change = (at(a + step)[0] - at(a - step)[0]) / (math.cos(a + step) - math.cos(a - step))
    sigma, theta = at(a)
    assert (theta - sigma) / math.cos(a) == pytest.approx(change, rel=1e-8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernels_are_symmetric_and_rectangles_are_blocks_of_the_square(rows: np.ndarray, activation: str) -> None:
    square = nngp_ntk(rows, rows, 3, activation)
    rectangle = nngp_ntk(rows[:4], rows[4:], 3, activation)
    for whole, part in zip(square, rectangle, strict=True):
        np.testing.assert_allclose(whole, whole.T, rtol=0, atol=1e-13)
        np.testing.assert_allclose(part, whole[:4, 4:], rtol=0, atol=1e-9)
        assert part.shape == (4, 8)
        assert np.linalg.eigvalsh(whole).min() > 0


@pytest.mark.parametrize("activation", ["erf", "tanh"])
def test_odd_activations_give_odd_kernels(rows: np.ndarray, activation: str) -> None:
    for plus, minus in zip(nngp_ntk(rows, rows, 2, activation), nngp_ntk(rows, -rows, 2, activation), strict=True):
        np.testing.assert_allclose(minus, -plus, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_other_activations_do_not(rows: np.ndarray, activation: str) -> None:
    plus, minus = (nngp_ntk(rows, sign * rows, 2, activation)[0] for sign in (1, -1))
    assert np.abs(plus + minus).max() > 0.01


def test_relu_is_homogeneous_and_gelu_tends_to_it(rows: np.ndarray) -> None:
    sigma, theta = nngp_ntk(rows, rows, 2, "relu")
    for scaled, kernel in zip(nngp_ntk(3 * rows, 2 * rows, 2, "relu"), (sigma, theta), strict=True):
        np.testing.assert_allclose(scaled, 6 * kernel, atol=1e-13)
    relu = nngp_ntk(rows, rows, 1, "relu")[0]
    gaps = [np.abs(nngp_ntk(s * rows, s * rows, 1, "gelu")[0] / s**2 - relu).max() for s in (0.5, 1.0, 2.0)]
    assert gaps[0] > gaps[1] > gaps[2]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_wide_finite_networks_have_these_kernels(rows: np.ndarray, activation: str) -> None:
    """Two hidden layers in the neural tangent parametrization, against the mean over nets; depth 1 is the control."""
    n, nets = 256, 200
    phi, dphi = {
        "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
        "tanh": kernels._SMOOTH["tanh"],
    }[activation]
    x = rows[:4]
    draws = np.random.default_rng(1)
    found = []
    for _ in range(nets):
        w1, w2, v = draws.normal(size=(n, 5)), draws.normal(size=(n, n)), draws.normal(size=n)
        h1 = x @ w1.T
        h2 = phi(h1) @ w2.T / math.sqrt(n)
        back2 = dphi(h2) * v / math.sqrt(n)
        back1 = dphi(h1) * (back2 @ w2) / math.sqrt(n)
        sigma = phi(h2) @ phi(h2).T / n
        ntk = sigma + (back2 @ back2.T) * (phi(h1) @ phi(h1).T) / n + (back1 @ back1.T) * (x @ x.T)
        found.append(ntk)
    mean, error = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(nets)
    _, theta = nngp_ntk(x, x, 2, activation)
    _, wrong = nngp_ntk(x, x, 1, activation)
    bound = 5 * error + 2 / n  # besides the sampling error there is a bias of order 1/n
    assert np.all(np.abs(mean - theta) < bound)
    assert np.any(np.abs(mean - wrong) > 3 * bound)


def test_quadrature_that_cannot_converge_says_so(rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"has not converged for pre-activation variances up to .*: scale the inputs"):
        nngp_ntk(30 * rows[:2], 30 * rows[:2], 1, "tanh")


@pytest.mark.parametrize(
    ("x1", "x2", "depth", "activation", "message"),
    [
        (np.ones(3), np.ones((1, 3)), 1, "relu", r"got shapes \(3,\) and \(1, 3\)"),
        (np.ones((2, 3)), np.ones((2, 4)), 1, "relu", r"got shapes \(2, 3\) and \(2, 4\)"),
        (np.ones((2, 3)), np.ones((2, 3)), 0, "relu", "depth = 0"),
        (np.ones((2, 3)), np.ones((2, 3)), 1, "sine", "unknown activation 'sine': choose one of relu, erf, tanh, gelu"),
    ],
)
def test_bad_kernel_input(x1: np.ndarray, x2: np.ndarray, depth: int, activation: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nngp_ntk(x1, x2, depth, activation)


# Gradient descent with a fixed kernel -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "linear"])
def test_a_linear_model_follows_its_kernel_exactly(rows: np.ndarray, loss: str) -> None:
    """A model f = x w has the kernel X Xᵀ at every w; batches repeat and overlap, one point is never trained."""
    draws = np.random.default_rng(2)
    y, w = draws.normal(size=(12, 3)), draws.normal(size=(5, 3))
    batches, eta = draws.integers(0, 11, size=(6, 4)), 0.4
    path = kernel_gradient_descent(rows @ rows.T, rows @ w, y, batches, eta, loss)
    assert path.shape == (7, 12, 3)
    for step, batch in enumerate(batches):
        np.testing.assert_allclose(path[step], rows @ w, rtol=0, atol=1e-13)
        chi = rows[batch] @ w - y[batch] if loss == "mse" else -y[batch]
        w = w - eta * rows[batch].T @ chi / 4
    np.testing.assert_allclose(path[-1], rows @ w, rtol=0, atol=1e-13)
    assert np.abs(path[-1, 11] - path[0, 11]).max() > 1e-3


def test_full_batch_mse_is_the_matrix_power(rows: np.ndarray) -> None:
    """Closed form: f_T - y = (I - η K/P)^T (f_0 - y)."""
    _, kernel = nngp_ntk(rows, rows, 2, "tanh")
    draws = np.random.default_rng(3)
    f0, y = draws.normal(size=(2, 12, 2))
    path = kernel_gradient_descent(kernel, f0, y, np.tile(np.arange(12), (50, 1)), 0.5)
    shrink = np.linalg.matrix_power(np.eye(12) - 0.5 * kernel / 12, 50)
    np.testing.assert_allclose(path[-1] - y, shrink @ (f0 - y), atol=1e-12)


def test_no_steps_and_no_rate_leave_f0() -> None:
    f0 = np.ones((3, 2))
    assert kernel_gradient_descent(np.eye(3), f0, f0, np.zeros((0, 4), dtype=int), 1.0).shape == (1, 3, 2)
    path = kernel_gradient_descent(np.eye(3), f0, 0 * f0, np.zeros((2, 1), dtype=int), 0.0)
    np.testing.assert_array_equal(path, np.ones((3, 3, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": np.eye(4)}, r"do not fit: \(4, 4\), \(3, 2\), \(3, 2\)"),
        ({"targets": np.ones((3, 1))}, "do not fit"),
        ({"batches": np.zeros(3, dtype=int)}, r"must be a \(T, B\) array of integers, got shape \(3,\)"),
        ({"batches": np.zeros((1, 2))}, r"got shape \(1, 2\) of float64"),
        ({"batches": np.array([[0, 3]])}, "batch indices run from 0 to 3, the points from 0 to 2"),
        ({"batches": np.array([[-1, 1]])}, "batch indices run from -1"),
        ({"loss": "cross-entropy"}, "unknown loss 'cross-entropy': choose 'mse' or 'linear'"),
    ],
)
def test_bad_gradient_descent_input(changes: dict, message: str) -> None:
    good = {"kernel": np.eye(3), "f0": np.ones((3, 2)), "targets": np.ones((3, 2)), "batches": np.array([[0, 1]])}
    with pytest.raises(ValueError, match=message):
        kernel_gradient_descent(**{**good, "eta": 0.1, **changes})
