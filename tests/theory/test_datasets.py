from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theory.datasets import blobs, digit_images, digits, mnist, two_blobs, vectors

# Digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_centred_and_of_unit_size() -> None:
    data = digits()
    assert data.x.shape == (1797, 64)
    assert data.y.shape == (1797, 10)
    assert (data.x.dtype, data.y.dtype, data.labels.dtype) == (np.float64, np.float64, np.int64)
    np.testing.assert_allclose(data.x.mean(axis=0), 0.0, atol=1e-14)
    assert np.mean(np.sum(data.x**2, axis=1)) == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_array_equal(data.y.sum(axis=1), 1.0)
    np.testing.assert_array_equal(data.y.argmax(axis=1), data.labels)


def test_digits_are_the_real_ones_up_to_shift_and_scale() -> None:
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    data = digits()
    np.testing.assert_array_equal(data.labels, labels)
    differences = data.x - data.x[0]
    scale = np.linalg.norm(differences[1]) / np.linalg.norm(raw[1] - raw[0])
    np.testing.assert_allclose(differences, scale * (raw - raw[0]), atol=1e-12)


def test_digit_images_are_the_same_digits_in_whole_numbers() -> None:
    held, data = digit_images(), vectors(digit_images())
    assert (held.images.shape, held.images.dtype, held.images.max()) == ((1797, 1, 8, 8), np.uint8, 16)
    np.testing.assert_array_equal(held.labels, digits().labels)
    np.testing.assert_allclose(data.x, digits().x, atol=1e-14)


def test_digits_split_depends_on_the_seed_alone_and_covers_everything() -> None:
    train, test = digits("train", seed=3), digits("test", seed=3)
    assert len(test.x) == round(1797 * 0.2)
    assert len(train.x) + len(test.x) == 1797
    np.testing.assert_array_equal(digits("train", seed=3).x, train.x)
    assert not np.array_equal(digits("train", seed=4).labels, train.labels)
    assert np.array_equal(np.sort(np.concatenate([train.labels, test.labels])), np.sort(digits().labels))
    # No point on both sides: both are scaled alike and digits has no duplicates, so no distance is zero.
    squared = (train.x**2).sum(1)[:, None] + (test.x**2).sum(1)[None] - 2 * train.x @ test.x.T
    assert squared.min() > 1e-3


def test_digits_test_part_is_scaled_by_the_training_part() -> None:
    train, test = digits("train"), digits("test")
    np.testing.assert_allclose(train.x.mean(axis=0), 0.0, atol=1e-14)
    assert np.mean(np.sum(train.x**2, axis=1)) == pytest.approx(1.0, rel=1e-12)
    size = np.mean(np.sum(test.x**2, axis=1))
    assert size != pytest.approx(1.0, rel=1e-6)
    assert size == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split = 'valid': choose 'all', 'train' or 'test'"),
        ({"split": "test", "test_fraction": 0.0}, "test_fraction = 0.0 leaves train or test empty"),
        ({"split": "train", "test_fraction": 1.5}, "test_fraction = 1.5"),
    ],
)
def test_bad_digits_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits(**arguments)


# Blobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centres", ["random", "orthogonal"])
def test_blobs_are_standardised_over_both_halves(centres: str) -> None:
    train, test = (blobs(4, 12, 50, 1.0, 7, centres, split=split) for split in ("train", "test"))
    assert train.x.shape == test.x.shape == (50, 12)
    assert (train.x.dtype, train.y.dtype, train.labels.dtype) == (np.float64, np.float64, np.int64)
    np.testing.assert_array_equal(train.y, np.eye(4)[train.labels])
    x = np.concatenate([train.x, test.x])
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(x.var(axis=0), 1, rtol=1e-13)
    assert abs(train.x.mean()) > 1e-6  # over both, not over each


@pytest.mark.parametrize(("k", "examples"), [(5, 50), (10, 10), (7, 40), (1, 3)])
def test_blobs_have_balanced_classes_in_random_order(k: int, examples: int) -> None:
    for split in ("train", "test"):
        labels = blobs(k, 6, examples, 1.0, 0, split=split).labels
        counts = np.bincount(labels, minlength=k)
        assert counts.sum() == examples
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(blobs(5, 6, 50, 1.0, 0).labels, np.arange(50) % 5)


def test_std_is_the_deviation_of_a_cluster_and_the_only_thing_it_changes() -> None:
    """Standardised data tells std only against the centres: the spread within clusters over that of their means."""
    k, d, examples = 3, 4, 2000
    spreads = {}
    for std in (0.1, 0.2):
        halves = [blobs(k, d, examples, std, 3, split=split) for split in ("train", "test")]
        x, labels = (np.concatenate([getattr(half, name) for half in halves]) for name in ("x", "labels"))
        means = np.stack([x[labels == c].mean(axis=0) for c in range(k)])
        spreads[std] = (x - means[labels]).std(axis=0) / means.std(axis=0)
    np.testing.assert_allclose(spreads[0.2] / spreads[0.1], 2, rtol=0.01)
    np.testing.assert_array_equal(*(blobs(k, d, 20, std, 3).labels for std in (0.1, 5.0)))


def test_random_centres_are_uniform_between_minus_ten_and_ten() -> None:
    """With vanishing std the points are the centres, shifted and scaled feature by feature.

    Uniform centres in [−10, 10]^d give features the fourth moment 9/5 (the uniform law's), normal ones 3; orthogonal
    centres make the k x k matrix of the inner products of unscaled, uncentred points 100 · 1.
    """
    x = blobs(400, 300, 400, 1e-9, 0).x
    assert np.mean(x**4) == pytest.approx(9 / 5, rel=0.02)
    # The deviation of a uniform law on [−10, 10] is 20/√12: noise of this std doubles the variance.
    half = blobs(2000, 40, 2000, 20 / 12**0.5, 0)
    other = blobs(2000, 40, 2000, 20 / 12**0.5, 0, split="test")
    pairs = [d.x[np.argsort(d.labels)] for d in (half, other)]
    assert np.mean(pairs[0] * pairs[1]) == pytest.approx(1 / 2, abs=0.01)


@pytest.mark.parametrize("k", [2, 8])
def test_orthogonal_centres(k: int) -> None:
    """The noise within clusters, of known deviation s, gives back the scale of every feature, so the centres."""
    s, examples = 0.1, 40_000
    x, labels = (getattr(blobs(k, k, examples, s, 5, "orthogonal"), name) for name in ("x", "labels"))
    means = np.stack([x[labels == c].mean(axis=0) for c in range(k)])
    within = (x - means[labels]).var(axis=0)  # s² over the total variance of the feature
    total = s**2 / within
    centred = means * np.sqrt(total)
    # Centring takes their mean m away, with m·c_a = |m|² = 100/k: (c_a − m)·(c_b − m) = 100 δ_ab − 100/k.
    np.testing.assert_allclose(centred @ centred.T, 100 * (np.eye(k) - 1 / k), atol=1.5)


def test_blobs_depend_on_the_seed() -> None:
    one, again, other = blobs(3, 5, 20, 1.0, 1), blobs(3, 5, 20, 1.0, 1), blobs(3, 5, 20, 1.0, 2)
    np.testing.assert_array_equal(one.x, again.x)
    assert not np.array_equal(one.labels, other.labels)
    assert not np.isin(one.x, other.x).any()


def test_two_blobs() -> None:
    tight = two_blobs(100, 1e-12, 0)
    np.testing.assert_allclose(tight.x, np.where(tight.labels == 1, 1.0, -1.0)[:, None] * np.ones(2), atol=1e-10)
    assert np.bincount(tight.labels).tolist() == [50, 50]
    np.testing.assert_array_equal(tight.y, np.eye(2)[tight.labels])
    narrow, wide = two_blobs(100, 0.5, 0), two_blobs(100, 1.0, 0)
    np.testing.assert_allclose(wide.x - tight.x, 2 * (narrow.x - tight.x), atol=1e-10)
    many = two_blobs(20_000, 0.5, 1)
    noise = many.x - np.where(many.labels == 1, 1.0, -1.0)[:, None]
    np.testing.assert_allclose(np.cov(noise.T), 0.25 * np.eye(2), atol=0.01)
    assert not np.array_equal(two_blobs(100, 0.5, 1).labels, narrow.labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "all"}, "split = 'all': choose 'train' or 'test'"),
        ({"centres": "grid"}, "centres = 'grid': choose 'random' or 'orthogonal'"),
        ({"k": 6, "centres": "orthogonal"}, "k = 6 orthogonal centres do not fit into d = 5 dimensions"),
        ({"k": 0}, "k = 0 must lie between 1 and the number of examples, 20"),
        ({"k": 21}, "k = 21 must lie .* no class may be empty"),
        ({"std": 0.0}, "std = 0.0 must be positive and finite"),
        ({"std": float("nan")}, "std = nan must be positive"),
    ],
)
def test_bad_blobs_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blobs(**{"k": 3, "d": 5, "examples": 20, "std": 1.0, "seed": 0} | arguments)


def test_bad_two_blobs_arguments() -> None:
    with pytest.raises(ValueError, match="std = -1 must be positive"):
        two_blobs(10, -1, 0)
    with pytest.raises(ValueError, match="number of examples, 1"):
        two_blobs(1, 1.0, 0)


# MNIST ------------------------------------------------------------------------------------------------------------

MNIST_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def idx(array: np.ndarray) -> bytes:
    """The IDX format: two zero bytes, 8 for bytes, the number of dimensions, big-endian sizes, the values."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_mnist(folder: Path, *, zipped: bool, count: int = 5) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    content = {}
    for split, names in MNIST_NAMES.items():
        arrays = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8), draws.integers(0, 10, count, dtype=np.uint8)
        content[split] = arrays
        for name, array in zip(names, arrays, strict=True):
            data = idx(array)
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return content


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("subfolder", [".", "raw", "MNIST/raw"])
def test_mnist_reads_back_what_was_written(tmp_path: Path, zipped: bool, subfolder: str) -> None:
    content = write_mnist(tmp_path / subfolder, zipped=zipped)
    for split, (images, labels) in content.items():
        data = mnist(tmp_path, split)
        assert (data.images.dtype, data.labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(data.images, images[:, None])
        np.testing.assert_array_equal(data.labels, labels)
        some = mnist(tmp_path, split, examples=2)
        np.testing.assert_array_equal(some.images, images[:2, None])
        np.testing.assert_array_equal(some.labels, labels[:2])


def test_mnist_as_vectors(tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path, zipped=True)["train"]
    data = vectors(mnist(tmp_path))
    assert data.x.shape == (5, 784)
    np.testing.assert_allclose(data.x.mean(axis=0), 0, atol=1e-15)
    assert np.mean(np.sum(data.x**2, axis=1)) == pytest.approx(1, rel=1e-12)
    np.testing.assert_array_equal(data.y, np.eye(10)[labels])
    raw = images.reshape(5, -1).astype(float)
    scale = (data.x[1] - data.x[0]).std() / (raw[1] - raw[0]).std()
    np.testing.assert_allclose(data.x - data.x[0], scale * (raw - raw[0]), atol=1e-12)


def test_mnist_missing_folder_and_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"MNIST folder .*nowhere does not exist"):
        mnist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"MNIST file train-images-idx3-ubyte or .*\.gz is missing in"):
        mnist(tmp_path)
    write_mnist(tmp_path, zipped=False)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte or"):
        mnist(tmp_path)
    assert len(mnist(tmp_path, "test").labels) == 5
    with pytest.raises(ValueError, match="split = 'all': choose 'train' or 'test'"):
        mnist(tmp_path, "all")
    for examples in (0, 6):
        with pytest.raises(ValueError, match=f"examples = {examples} must lie between 1 and the 5 of MNIST test"):
            mnist(tmp_path, "test", examples=examples)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kept", [0, 3, 12, -1])
@pytest.mark.parametrize("which", [0, 1])
def test_mnist_truncated_file(tmp_path: Path, zipped: bool, kept: int, which: int) -> None:
    write_mnist(tmp_path, zipped=zipped)
    path = tmp_path / (MNIST_NAMES["test"][which] + ".gz" * zipped)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path.name} .*truncated"):
        mnist(tmp_path, "test")


@pytest.mark.parametrize(
    ("which", "content", "message"),
    [
        (0, idx(np.zeros(5, dtype=np.uint8)).ljust(20, b"\0"), "starts with 0x00000801, not 0x00000803"),
        (0, b"\x89PNG" + bytes(30), "starts with 0x89504e47"),
        (0, idx(np.zeros((5, 32, 28), dtype=np.uint8)), "images of 32 x 28 pixels, not 28 x 28"),
        (0, idx(np.zeros((4, 28, 28), dtype=np.uint8)), "MNIST test has 4 images but 5 labels"),
        (0, idx(np.zeros((5, 28, 28), dtype=np.uint8)) + b"\0", "announces 3920 values and holds 3921"),
        (0, idx(np.zeros((0, 28, 28), dtype=np.uint8)), "announces 0 values"),
        (1, idx(np.full(5, 10, dtype=np.uint8)), r"holds the label 10, outside 0\.\.9"),
    ],
)
def test_mnist_file_of_something_else(tmp_path: Path, which: int, content: bytes, message: str) -> None:
    write_mnist(tmp_path, zipped=False)
    (tmp_path / MNIST_NAMES["test"][which]).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        mnist(tmp_path, "test")


def test_mnist_damaged_gzip(tmp_path: Path) -> None:
    write_mnist(tmp_path, zipped=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is truncated or not a gzip file"):
        mnist(tmp_path, "test")
    path.write_bytes(b"not gzip at all")
    with pytest.raises(ValueError, match="is truncated or not a gzip file"):
        mnist(tmp_path, "test")
