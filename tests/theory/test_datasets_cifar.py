"""CIFAR-10 and CIFAR-100 from small files of the formats that their authors distribute."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theory.datasets import cifar10, cifar100, vectors

# CIFAR-10 ---------------------------------------------------------------------------------------------------------

FILES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
PER_FILE = 3
Write = Callable[[Path, np.ndarray, list[int]], None]


def write_binary(path: Path, pixels: np.ndarray, labels: list[int]) -> None:
    records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], axis=1)
    path.with_name(path.name + ".bin").write_bytes(records.tobytes())


def write_python(path: Path, pixels: np.ndarray, labels: list[int], protocol: int = 2) -> None:
    batch = {b"batch_label": b"tiny", b"labels": labels, b"data": pixels, b"filenames": [b"a.png"] * len(labels)}
    path.write_bytes(pickle.dumps(batch, protocol=protocol))


def python_2_string(value: bytes) -> bytes:
    """Opcode of a Python 2 str (BINSTRING): what protocol 2 of Python 2 wrote, and no Python 3 pickler writes."""
    return b"T" + len(value).to_bytes(4, "little") + value


def write_python_2(path: Path, pixels: np.ndarray, labels: list[int]) -> None:
    """Write the opcodes of the official files by hand: str keys and str pixels of Python 2, numpy.core names."""
    count = len(labels)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + python_2_string(b"b") + b"tR"
        b"(K\x01(K" + bytes([count]) + b"M\x00\x0ct"
        b"cnumpy\ndtype\n(" + python_2_string(b"u1") + b"K\x00K\x01tR"
        b"(K\x03" + python_2_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + python_2_string(pixels.tobytes()) + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    path.write_bytes(b"\x80\x02}(" + python_2_string(b"data") + array + python_2_string(b"labels") + numbers + b"u.")


@pytest.fixture
def content() -> dict[str, tuple[np.ndarray, list[int]]]:
    draws = np.random.default_rng(0)
    return {
        name: (draws.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8), draws.integers(0, 10, PER_FILE).tolist())
        for name in FILES
    }


def write_all(folder: Path, content: dict[str, tuple[np.ndarray, list[int]]], write: Write) -> Path:
    folder.mkdir(exist_ok=True)
    for name, (pixels, labels) in content.items():
        write(folder / name, pixels, labels)
    return folder


@pytest.mark.parametrize(
    ("write", "subfolder"),
    [
        (write_binary, "."),
        (write_binary, "cifar-10-batches-bin"),
        (write_python, "."),
        (write_python, "cifar-10-batches-py"),
        (write_python_2, "."),
        (lambda path, pixels, labels: write_python(path, pixels, labels, protocol=5), "."),
    ],
)
def test_cifar10_reads_back_what_was_written(
    tmp_path: Path, content: dict[str, tuple[np.ndarray, list[int]]], write: Write, subfolder: str
) -> None:
    write_all(tmp_path / subfolder, content, write)
    for split, names in (("train", FILES[:5]), ("test", FILES[5:])):
        data = cifar10(tmp_path, split)
        assert data.images.shape == (PER_FILE * len(names), 3, 32, 32)
        assert (data.images.dtype, data.labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(
            data.images.reshape(-1, 3072), np.concatenate([content[name][0] for name in names])
        )
        assert data.labels.tolist() == [label for name in names for label in content[name][1]]


def test_cifar10_pixels_are_channel_row_column(tmp_path: Path) -> None:
    """The format: 1024 red values, then green, then blue, each row by row."""
    pixels = np.zeros((1, 3072), dtype=np.uint8)
    pixels[0, 1024 * 1 + 32 * 5 + 7] = 200
    write_binary(tmp_path / "test_batch", pixels, [4])
    images = cifar10(tmp_path, "test").images
    assert images[0, 1, 5, 7] == 200
    assert images.sum() == 200


def test_cifar10_missing_folder_and_files(tmp_path: Path, content: dict[str, tuple[np.ndarray, list[int]]]) -> None:
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10 folder .*nowhere does not exist"):
        cifar10(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 test files in .*: expected test_batch.bin"):
        cifar10(tmp_path, "test")
    write_all(tmp_path, content, write_binary)
    (tmp_path / "data_batch_2.bin").unlink()
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"train files are missing: .*data_batch_2\.bin, .*data_batch_4\.bin$"):
        cifar10(tmp_path)
    assert len(cifar10(tmp_path, "test").labels) == PER_FILE
    with pytest.raises(ValueError, match="split = 'all': choose 'train' or 'test'"):
        cifar10(tmp_path, "all")


@pytest.mark.parametrize("write", [write_binary, write_python, write_python_2])
@pytest.mark.parametrize("kept", [0, 1, 3072, -1])
def test_cifar10_truncated_file(tmp_path: Path, write: Write, kept: int) -> None:
    write(tmp_path / "test_batch", np.zeros((2, 3072), dtype=np.uint8), [1, 2])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path.name} .*truncated"):
        cifar10(tmp_path, "test")


def test_cifar10_file_cut_between_two_images(tmp_path: Path, content: dict[str, tuple[np.ndarray, list[int]]]) -> None:
    write_all(tmp_path, content, write_binary)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:3073])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin holds 1 images where the others hold 3: it is truncated"):
        cifar10(tmp_path)


@pytest.mark.parametrize("write", [write_binary, write_python])
def test_cifar10_label_out_of_range(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "test_batch", np.zeros((2, 3072), dtype=np.uint8), [9, 10])
    with pytest.raises(ValueError, match=r"holds the label 10, outside 0\.\.9"):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "'data' is not an"),
        ({"labels": [1]}, "'data' is not an"),
        ({"data": np.zeros((1, 3072)), "labels": [1]}, "'data' is not an"),
        ({"data": np.zeros((1, 100), dtype=np.uint8), "labels": [1]}, r"\(N, 3072\) array of bytes"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [1]}, "'labels' is not a list of 2 numbers"),
        ({"data": np.zeros((1, 3072), dtype=np.uint8), "labels": [2**80]}, r"label 1208925819614629174706176, outside"),
        ({"data": np.zeros((1, 3072), dtype=np.uint8), "labels": ["cat"]}, "holds the label 'cat', outside"),
    ],
)
def test_cifar10_pickle_of_something_else(tmp_path: Path, batch: object, message: str) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(ValueError, match=message):
        cifar10(tmp_path, "test")


class Touch:
    """Pickles to a call: unpickling it the ordinary way creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_cifar10_does_not_run_code_from_a_pickle(tmp_path: Path, protocol: int) -> None:
    victim = tmp_path / "victim"
    payload = pickle.dumps({b"data": Touch(victim), b"labels": []}, protocol=protocol)
    (tmp_path / "test_batch").write_bytes(payload)
    with pytest.raises(ValueError, match=r"test_batch: refused: it asks for .*, which no CIFAR batch needs"):
        cifar10(tmp_path, "test")
    assert not victim.exists()
    pickle.loads(payload)  # the control: the payload does work
    assert victim.exists()


@pytest.mark.parametrize(
    ("payload", "asks"),
    [
        (b"cos\nsystem\n(S'exit 1'\ntR.", "os.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "(__builtin__|builtins).eval"),
        (b"\x80\x04\x8c\x05numpy\x8c\x04load\x93\x8c\x01x\x85R.", "numpy.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.fly\x93.", "numpy.ndarray.fly"),
        (b"c_codecs\nencode\n(Vx\nVzlib\ntR.", "the encoding 'zlib'"),
    ],
)
def test_cifar10_refuses_by_name(tmp_path: Path, payload: bytes, asks: str) -> None:
    (tmp_path / "test_batch").write_bytes(payload)
    with pytest.raises(ValueError, match=f"refused: it asks for {asks}"):
        cifar10(tmp_path, "test")


# CIFAR-100 --------------------------------------------------------------------------------------------------------


def write_binary_100(path: Path, pixels: np.ndarray, labels: list[int]) -> None:
    """Coarse labels are unlike the fine ones: who reads the wrong byte is found out."""
    coarse = [label // 5 for label in labels]
    records = np.concatenate([np.array([coarse, labels], dtype=np.uint8).T, pixels], axis=1)
    path.with_name(path.name + ".bin").write_bytes(records.tobytes())


def write_python_100(path: Path, pixels: np.ndarray, labels: list[int]) -> None:
    names = [b"a.png"] * len(labels)
    coarse = [label // 5 for label in labels]
    batch = {b"filenames": names, b"fine_labels": labels, b"coarse_labels": coarse, b"data": pixels}
    path.write_bytes(pickle.dumps(batch | {b"batch_label": b"tiny"}, protocol=2))


@pytest.fixture
def hundred() -> dict[str, tuple[np.ndarray, list[int]]]:
    draws = np.random.default_rng(1)
    return {
        name: (draws.integers(0, 256, (count, 3072), dtype=np.uint8), draws.integers(11, 100, count).tolist())
        for name, count in (("train", 5), ("test", 2))
    }


@pytest.mark.parametrize(
    ("write", "subfolder"),
    [
        (write_binary_100, "."),
        (write_binary_100, "cifar-100-binary"),
        (write_python_100, "."),
        (write_python_100, "cifar-100-python"),
    ],
)
def test_cifar100_reads_back_what_was_written(
    tmp_path: Path, hundred: dict[str, tuple[np.ndarray, list[int]]], write: Write, subfolder: str
) -> None:
    write_all(tmp_path / subfolder, hundred, write)
    for split, (pixels, labels) in hundred.items():
        data = cifar100(tmp_path, split)
        assert (data.images.dtype, data.labels.dtype, data.classes) == (np.uint8, np.int64, 100)
        np.testing.assert_array_equal(data.images, pixels.reshape(-1, 3, 32, 32))
        assert data.labels.tolist() == labels
    assert vectors(cifar100(tmp_path)).y.argmax(1).tolist() == hundred["train"][1]


def test_cifar100_missing_folder_and_files(tmp_path: Path, hundred: dict[str, tuple[np.ndarray, list[int]]]) -> None:
    with pytest.raises(FileNotFoundError, match=r"CIFAR-100 folder .*nowhere does not exist"):
        cifar100(tmp_path / "nowhere")
    message = r"no CIFAR-100 test files in .*: expected test.bin \(binary version\) or test \(python version\)"
    with pytest.raises(FileNotFoundError, match=message):
        cifar100(tmp_path, "test")
    write_all(tmp_path, {"train": hundred["train"]}, write_binary_100)
    (tmp_path / "test").mkdir()  # a folder is no file
    with pytest.raises(FileNotFoundError, match=message):
        cifar100(tmp_path, "test")
    assert len(cifar100(tmp_path).labels) == 5
    with pytest.raises(ValueError, match="split = 'all': choose 'train' or 'test'"):
        cifar100(tmp_path, "all")


@pytest.mark.parametrize("write", [write_binary_100, write_python_100])
@pytest.mark.parametrize("kept", [0, 1, 3074, -1])
def test_cifar100_truncated_file(tmp_path: Path, write: Write, kept: int) -> None:
    write(tmp_path / "train", np.zeros((3, 3072), dtype=np.uint8), [1, 2, 3])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:kept])
    if (kept, write) == (3074, write_binary_100):  # as far as this format can tell, a set of one image
        assert cifar100(tmp_path).labels.tolist() == [1]
        return
    with pytest.raises(ValueError, match=f"{path.name} .*truncated or not"):
        cifar100(tmp_path)


@pytest.mark.parametrize("write", [write_binary_100, write_python_100])
def test_cifar100_label_out_of_range(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "test", np.zeros((2, 3072), dtype=np.uint8), [99, 100])
    with pytest.raises(ValueError, match=r"holds the label 100, outside 0\.\.99"):
        cifar100(tmp_path, "test")


def test_cifar10_is_not_taken_for_cifar100(tmp_path: Path) -> None:
    write_binary(tmp_path / "test", np.zeros((2, 3072), dtype=np.uint8), [1, 2])
    with pytest.raises(ValueError, match=r"test\.bin has 6146 bytes, not a multiple of 3074"):
        cifar100(tmp_path, "test")
    (tmp_path / "test.bin").unlink()
    write_python(tmp_path / "test", np.zeros((2, 3072), dtype=np.uint8), [1, 2])
    with pytest.raises(ValueError, match="'fine_labels' is not a list of 2 numbers"):
        cifar100(tmp_path, "test")


def test_cifar100_does_not_run_code_from_a_pickle(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "train").write_bytes(pickle.dumps({b"data": Touch(victim), b"fine_labels": []}, protocol=2))
    with pytest.raises(ValueError, match=r"train: refused: it asks for .*, which no CIFAR batch needs"):
        cifar100(tmp_path)
    assert not victim.exists()
