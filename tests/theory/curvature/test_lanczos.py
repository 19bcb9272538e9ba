"""Spectra from products, against dense eigensolvers and planted spectra."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from theory.curvature.lanczos import eigenpairs, lanczos
from theory.curvature.quadrature import slq
from theory.ensemble import normal

K, M = 3, 560


@cache
def rotation(size: int) -> Tensor:
    return torch.linalg.qr(normal((size, size), "rotation", 0))[0]


def rotated(values: Tensor) -> Tensor:
    """Symmetric [..., M, M] with the given eigenvalues [..., M] and random eigenvectors, of all members the same."""
    Q = rotation(values.shape[-1])
    H = (Q * values.unsqueeze(-2)) @ Q.mT
    return (H + H.mT) / 2


def times(H: Tensor):
    return lambda v: torch.bmm(H, v)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.special.ndtr(normal(shape, "values", seed))


def spectrum(kind: str) -> Tensor:
    """Eigenvalues [K, M], unsorted, one matrix per member."""
    values = uniform(K, M)
    if kind == "indefinite":
        return normal((K, M), "indefinite", 0)
    if kind == "clustered":  # ten values within 1e-5 at the top, far from the rest
        values[:, :10] = 5 + 1e-5 * uniform(K, 10, seed=1)
    if kind == "repeated":  # one value 12 times at the top, another 5 times at the bottom
        values[:, :12] = torch.tensor([3.0, 4.0, 5.0]).view(K, 1)
        values[:, 12:17] = -2.0
    if kind == "low rank":
        values[:, 6:] = 0
    if kind == "negative":
        return -1 - values
    if kind == "graded":
        return torch.logspace(0, -14, M, dtype=torch.float64).expand(K, M)
    return values


CASES = [
    *((kind, which) for kind in ("indefinite", "clustered", "repeated") for which in ("largest", "smallest")),
    *((kind, "largest") for kind in ("low rank", "negative", "graded")),
]


@pytest.mark.parametrize(("kind", "which"), CASES)
@pytest.mark.parametrize("count", [1, 16])
def test_eigenpairs_agree_with_a_dense_solver_and_residuals_are_true(kind, which, count):
    H = rotated(spectrum(kind))
    exact = spectrum(kind).sort(1).values
    scale = exact.abs().amax(1, keepdim=True)
    found = eigenpairs(times(H), K, M, count, which, tol=1e-7)
    expected = exact.flip(1)[:, :count] if which == "largest" else exact[:, :count]
    assert ((found.values - expected).abs() <= 1e-7 * scale).all()
    true = (H @ found.vectors - found.values.unsqueeze(1) * found.vectors).norm(dim=1)
    assert (true <= 1e-7 * scale).all()
    assert ((found.residuals - true).abs() <= 1e-13 * scale).all()
    overlap = found.vectors.mT @ found.vectors
    torch.testing.assert_close(overlap, torch.eye(count, dtype=H.dtype).expand(K, -1, -1), rtol=0, atol=1e-12)


def test_outliers_take_far_fewer_products_than_the_matrix_has_columns():
    values = uniform(K, M)
    values[:, :8] = torch.arange(8, 16)
    assert eigenpairs(times(rotated(values)), K, M, 8).products < M / 5


def test_copies_beyond_the_block_are_found():
    """A Krylov space of one vector holds one eigenvector per eigenvalue: a single block of 1 sees one copy of 12."""
    H = rotated(spectrum("repeated"))
    found = eigenpairs(times(H), K, M, 12, block=1)
    torch.testing.assert_close(found.values, torch.tensor([[3.0], [4.0], [5.0]], dtype=H.dtype).expand(K, 12))


def test_a_repeated_search_changes_only_the_members_that_need_it():
    """The last member has repeated eigenvalues; the others keep what they had when they are alone."""
    values = spectrum("random")
    values[2, :12] = 3
    H = rotated(values)
    together = eigenpairs(times(H), K, M, 10, block=2)
    alone = eigenpairs(times(H[:2]), 2, M, 10, block=2)
    torch.testing.assert_close(together.values[:2], alone.values, rtol=1e-12, atol=0)
    torch.testing.assert_close(together.vectors[:2], alone.vectors, rtol=0, atol=1e-9)
    torch.testing.assert_close(together.values[2], torch.full((10,), 3.0, dtype=H.dtype))


@pytest.mark.parametrize("size", [5, 40])
def test_small_matrices_are_diagonalised_whole(size):
    H = rotated(normal((K, size), "small", 0))
    found = eigenpairs(times(H), K, size, size, "smallest")
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(H))
    assert found.products == size
    assert found.residuals.max() < 1e-13


def test_a_zero_operator_has_zero_eigenvalues():
    found = eigenpairs(torch.zeros_like, K, M, 7)
    assert found.values.abs().max() == 0
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(K, 7, dtype=torch.float64))


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_scaling_and_shifting_the_operator_scales_and_shifts_the_eigenvalues(factor):
    H = rotated(spectrum("indefinite"))
    plain = eigenpairs(times(H), K, M, 8)
    moved = eigenpairs(lambda v: factor * (H @ v + 2 * v), K, M, 8)
    torch.testing.assert_close(moved.values, factor * (plain.values + 2), rtol=1e-9, atol=0)
    mirrored = eigenpairs(lambda v: -factor * (H @ v), K, M, 8, "smallest")
    torch.testing.assert_close(mirrored.values, -factor * plain.values, rtol=1e-9, atol=0)


def test_eigenpairs_depend_on_the_seed_and_on_no_other_member():
    H = rotated(spectrum("indefinite"))
    stack = eigenpairs(times(H), K, M, 8)
    again = eigenpairs(times(H), K, M, 8)
    assert torch.equal(stack.values, again.values)
    assert torch.equal(stack.vectors, again.vectors)
    for k in range(K):
        alone = eigenpairs(times(H[k : k + 1]), 1, M, 8)
        torch.testing.assert_close(alone.values[0], stack.values[k], rtol=1e-12, atol=0)
        torch.testing.assert_close(alone.vectors[0], stack.vectors[k], rtol=0, atol=1e-9)
    other = eigenpairs(times(H), K, M, 8, seed=1)
    assert not torch.equal(other.vectors, stack.vectors)
    torch.testing.assert_close(other.values, stack.values, rtol=1e-9, atol=0)


def test_eigenpairs_say_what_is_wrong():
    H = rotated(spectrum("random"))
    with pytest.raises(ValueError, match="count = 561 must lie between 1 and the number of parameters, 560"):
        eigenpairs(times(H), K, M, 561)
    with pytest.raises(ValueError, match="which = 'LA' must be 'largest' or 'smallest'"):
        eigenpairs(times(H), K, M, 3, "LA")
    with pytest.raises(ValueError, match="not finite"):
        eigenpairs(lambda v: v / 0, K, M, 3)
    with pytest.raises(ValueError, match=r"the product of vectors \[3, 560, 3\] is \[3, 560, 1\]"):
        eigenpairs(lambda v: v[..., :1], K, M, 3)
    with pytest.raises(RuntimeError, match=r"max_products = 40; their largest residuals are \[.*\]"):
        eigenpairs(times(rotated(spectrum("random"))), K, M, 16, max_products=40)
    for size in (M, 20):  # found by the search, and by the dense solver
        skew = normal((K, size, size), "skew", 0)
        with pytest.raises(ValueError, match="the operator is not symmetric"):
            eigenpairs(times(skew), K, size, 3)


def test_lanczos_vectors_are_orthonormal_and_tridiagonalise():
    H = rotated(spectrum("clustered"))
    T = lanczos(times(H), normal((K, M, 2), "start", 0), 60, keep_basis=True)
    assert T.basis is not None
    eye = torch.eye(60, dtype=H.dtype).expand(K, 2, -1, -1)
    torch.testing.assert_close(T.basis @ T.basis.mT, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(T.basis @ H.unsqueeze(1) @ T.basis.mT, T.matrix(), rtol=0, atol=1e-12)
    assert (T.size == 60).all()


@pytest.mark.parametrize("distinct", [1, 2, 7])
def test_as_many_steps_as_distinct_eigenvalues_are_exact_and_more_change_nothing(distinct):
    levels = torch.linspace(-1, 2, distinct, dtype=torch.float64)
    H = rotated(levels[torch.arange(M) % distinct].expand(K, M))
    start = normal((K, M, 2), "start", 0)
    for steps in (distinct, distinct + 1, distinct + 20):
        T = lanczos(times(H), start, steps, keep_basis=True)
        assert (T.size == distinct).all()
        ritz = torch.linalg.eigvalsh(T.matrix()[..., :distinct, :distinct])
        torch.testing.assert_close(ritz, levels.expand(K, 2, -1), rtol=0, atol=1e-12)
        assert T.alpha[..., distinct:].abs().sum() == 0
        assert T.beta[..., distinct - 1 :].abs().sum() == 0
        assert T.basis is not None
        assert T.basis[..., distinct:, :].abs().sum() == 0


def test_one_vector_breaks_down_while_the_others_go_on():
    H = rotated(spectrum("random"))
    eigenvector = torch.linalg.eigh(H)[1][1, :, 5]
    start = normal((K, M, 2), "start", 0)
    start[1, :, 1] = eigenvector
    T = lanczos(times(H), start, 10)
    assert T.size.tolist() == [[10, 10], [10, 1], [10, 10]]
    torch.testing.assert_close(T.alpha[1, 1, 0], eigenvector @ H[1] @ eigenvector)
    whole = lanczos(times(H), normal((K, M, 2), "start", 0), 10)
    torch.testing.assert_close(T.alpha[0], whole.alpha[0], rtol=0, atol=1e-12)


def test_lanczos_says_what_is_wrong():
    start = torch.ones(1, 6, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="steps = 7 must lie between 1 and the number of parameters, 6"):
        lanczos(torch.clone, start, 7)
    with pytest.raises(ValueError, match="finite and nonzero"):
        lanczos(torch.clone, 0 * start, 2)
    with pytest.raises(ValueError, match="not finite"):
        lanczos(lambda v: v * torch.inf, start, 2)


def planted() -> Tensor:
    """Five outliers, a bulk of 100 in [0, 0.1] and 895 zeros."""
    values = torch.zeros(1000, dtype=torch.float64)
    values[:5] = torch.tensor([10.0, 8, 6, 4, 3])
    values[5:105] = 0.1 * uniform(100)
    return values


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_quadrature_of_a_planted_spectrum_covers_the_truth_with_its_intervals(probe):
    values = planted()
    H = rotated(values)[None]
    found = slq(times(H), 1, 1000, probes=30, steps=40, seed=0, probe=probe)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(1, 30, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.weights.min() >= 0
    outliers, zeros = found.count_above(1.0), found.mass(-1e-6, 1e-6)
    for estimate, truth in ((outliers, 5.0), (zeros, 0.895), (found.expect(lambda x: x), values.mean())):
        assert abs(estimate.mean - truth) < 2 * (estimate.high - estimate.mean)  # four standard errors
    assert 0.2 < outliers.high - outliers.low < 4, "an interval of this width cannot count five outliers"


def test_quadrature_integrates_polynomials_of_each_probe_exactly():
    """Gauss quadrature with m nodes is exact up to degree 2m − 1; signs see a diagonal matrix evenly."""
    values = spectrum("indefinite")
    found = slq(lambda v: values.unsqueeze(2) * v, K, M, probes=2, steps=4)
    for power in range(8):
        estimate = found.expect(lambda x, power=power: x**power)
        exact = (values**power).mean(1)
        torch.testing.assert_close(estimate.mean, exact, rtol=1e-10, atol=1e-12)
    degree_8 = found.expect(lambda x: x**8).mean
    assert ((degree_8 - (values**8).mean(1)).abs() > 1e-3).all()


def test_a_density_integrates_to_one_and_sums_up_to_the_masses():
    H = rotated(spectrum("indefinite"))
    found = slq(times(H), K, M, probes=4, steps=30)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = found.density(grid, sigma=0.05)
    assert density.mean.shape == (K, 4001)
    torch.testing.assert_close(torch.trapezoid(density.mean, grid), torch.ones(K, dtype=H.dtype), rtol=0, atol=1e-9)
    assert (density.low <= density.mean).all()
    assert (density.mean <= density.high).all()
    middle = torch.tensor([-0.1, 0.0, 0.3], dtype=H.dtype)  # one threshold per member
    whole = found.mass(-torch.inf, torch.inf)
    torch.testing.assert_close(whole.mean, torch.ones(K, dtype=H.dtype))
    split = M * (whole.mean - found.mass(-torch.inf, middle).mean)
    torch.testing.assert_close(split, found.count_above(middle).mean)


def test_the_interval_is_that_of_student_over_probes():
    found = slq(times(rotated(spectrum("random"))), K, M, probes=3, steps=5)
    each = (found.weights * found.nodes).sum(-1)
    quantile = (
        0.95 / (2 * 0.975 * 0.025) ** 0.5
    )  # of t with two degrees of freedom, (2p − 1)/√(2p(1 − p)) at p = 97.5 %
    half = quantile * each.std(1) / 3**0.5
    torch.testing.assert_close(found.expect(lambda x: x).high, each.mean(1) + half, rtol=1e-12, atol=0)


def test_scaling_and_shifting_the_operator_scales_and_shifts_the_nodes():
    H = rotated(spectrum("indefinite"))
    plain = slq(times(H), K, M, probes=3, steps=12)
    moved = slq(lambda v: 1e-6 * (H @ v) + 4e-6 * v, K, M, probes=3, steps=12)
    torch.testing.assert_close(moved.nodes, 1e-6 * plain.nodes + 4e-6, rtol=1e-9, atol=0)
    torch.testing.assert_close(moved.weights, plain.weights, rtol=1e-7, atol=1e-12)


def test_quadrature_depends_on_the_seed_and_on_no_other_member():
    H = rotated(spectrum("random"))
    stack = slq(times(H), K, M, probes=3, steps=20)
    for k in range(K):
        alone = slq(times(H[k : k + 1]), 1, M, probes=3, steps=20)
        torch.testing.assert_close(alone.nodes[0], stack.nodes[k], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(alone.weights[0], stack.weights[k], rtol=1e-8, atol=1e-12)
    assert torch.equal(stack.nodes, slq(times(H), K, M, probes=3, steps=20).nodes)
    assert not torch.equal(stack.nodes, slq(times(H), K, M, probes=3, steps=20, seed=1).nodes)


def test_quadrature_says_what_is_wrong():
    with pytest.raises(ValueError, match="probes = 1: an interval over probes needs at least 2"):
        slq(torch.clone, 1, 10, probes=1, steps=2)
    with pytest.raises(ValueError, match="probe = 'uniform' must be 'rademacher' or 'gaussian'"):
        slq(torch.clone, 1, 10, probes=2, steps=2, probe="uniform")
    with pytest.raises(ValueError, match="sigma = 0 must be positive"):
        slq(torch.clone, 1, 10, probes=2, steps=2).density(torch.zeros(1), 0)
