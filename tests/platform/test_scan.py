"""Reading: only the columns and rows asked for; damage behind a good footer is named."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from assay.errors import AssayError
from assay.part import ROW_GROUP
from assay.store import Store

AT = ("width", "smoke")
SCHEMA = pa.schema(
    [("cell", pa.string()), ("width", pa.int64()), ("step", pa.int64()), ("loss", pa.float64())]
    + [(f"x{index}", pa.float64()) for index in range(8)]
)


def commit(store: Store, number: int, rows: int) -> str:
    """One cell with rows of random numbers, of the width 2^number; the path of its part."""
    rng = np.random.default_rng(number)
    cell = f"c{number}"
    columns: dict[str, Any] = {
        "cell": [cell] * rows,
        "width": np.full(rows, 2 ** (number % 60)),
        "step": np.arange(rows),
    }
    columns |= {name: rng.random(rows) for name in SCHEMA.names[3:]}
    parts = {"main": (SCHEMA, columns)}
    store.commit(*AT, f"p{number}", parts, version="1", trial="t", cells=[cell], provenance={})
    return f"{store.folder(*AT, 'main')}/p{number}.parquet"


def read(store: Store, **options: Any) -> pa.Table:
    return store.read(*AT, "main", SCHEMA, "1", **options)


class Counted(io.BytesIO):
    """A file that counts the bytes that are read from it."""

    sizes: ClassVar[list[int]] = []

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        Counted.sizes.append(len(data))
        return data


class Counting(pafs.FSSpecHandler):
    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(Counted(Path(path).read_bytes()), mode="r")


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, int]:
    """A store that counts what is read from it, with one long part and three short ones, and its size in bytes."""
    store = Store(tmp_path_factory.mktemp("results"))
    paths = [commit(store, number, rows) for number, rows in enumerate((3 * ROW_GROUP, 20_000, 20_000, 20_000))]
    store.filesystem = pafs.PyFileSystem(Counting(LocalFileSystem()))
    return store, sum(Path(path).stat().st_size for path in paths)


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({}, 0.99, 1.1),
        ({"columns": ["loss"]}, 0.08, 0.2),
        ({"filters": [("width", "=", 8)]}, 0.05, 0.2),
        ({"filters": pc.field("width") == 8}, 0.05, 0.2),
        ({"filters": [("step", ">=", 2 * ROW_GROUP)]}, 0.2, 0.4),
        ({"columns": ["loss"], "filters": [("width", "=", 99)]}, 0, 0.03),
    ],
)
def test_only_what_is_asked_for_is_read(
    counted: tuple[Store, int], options: dict[str, Any], least: float, most: float
) -> None:
    store, size = counted
    Counted.sizes.clear()
    table = read(store, **options)
    assert least < sum(Counted.sizes) / size < most
    filters = options.get("filters", pc.scalar(True))
    kept = read(store).filter(pq.filters_to_expression(filters) if isinstance(filters, list) else filters)
    assert table.equals(kept.select(options.get("columns", SCHEMA.names)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["los"]}, "unknown column 'los'; did you mean 'loss'?"),
        ({"filters": [("widht", "=", 8)]}, "unknown column 'widht'; did you mean 'width'?"),
        ({"filters": pc.field("widht") == 8}, "unknown column 'widht'; did you mean 'width'?"),
        ({"filters": [("width", "=", "wide")]}, "filters [('width', '=', 'wide')]: Function 'equal' has no kernel"),
        ({"filters": [("width", 8)]}, "filters [('width', 8)]: "),
        ({"filters": "width = 8"}, "filters width = 8: "),
    ],
)
def test_what_is_asked_for_must_exist(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    store = Store(tmp_path)
    commit(store, 0, 1)
    with pytest.raises(AssayError) as caught:
        read(store, **options)
    assert str(caught.value).startswith(message)


def test_damaged_data_behind_a_good_footer_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    commit(store, 0, 10)
    path = Path(commit(store, 1, 10))
    chunk = pq.read_metadata(path).row_group(0).column(SCHEMA.get_field_index("loss"))
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    assert store.problems(*AT) == []
    with pytest.raises(AssayError, match=r"p1\.parquet: its rows do not read .* run the study again"):
        read(store)
    assert read(store, columns=["width"]).num_rows == 20  # columns that are not asked for are not read


def test_columns_that_changed_without_a_new_version_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    commit(store, 0, 10)
    for changed in (SCHEMA.append(pa.field("accuracy", pa.float64())), SCHEMA.set(1, pa.field("width", pa.float64()))):
        with pytest.raises(AssayError, match=r"p0\.parquet: its columns are not .* give the study a new version"):
            store.read(*AT, "main", changed, "1")


def cpu_seconds(function: Callable[[], Any]) -> float:
    """Least of three runs, CPU time of all threads: the machine may be busy with other things."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def test_ten_thousand_rows_in_300_parts_read_in_a_second(tmp_path: Path) -> None:
    store = Store(tmp_path)
    times = []
    for number in range(300):
        start = time.process_time()
        commit(store, number, 34)
        times.append(time.process_time() - start)
    assert np.median(times) < 0.010
    assert cpu_seconds(lambda: store.stored(*AT, "1", {"t": ("main",)})) < 0.3
    assert cpu_seconds(lambda: read(store).to_pandas()) < 1.0
    assert read(store).num_rows == 300 * 34
