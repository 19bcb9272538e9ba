"""A part: rows that fit their schema exactly, as bytes that depend on nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from assay.errors import AssayError
from assay.part import Part, Stamp, decode, encode

CELLS = ("c0", "c1")
SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("status", pa.string()),
        ("width", pa.int64()),
        ("loss", pa.float64()),
        ("spectrum", pa.list_(pa.float64())),
    ]
)
GOOD: dict[str, Any] = {
    "cell": ["c0", "c1"],
    "status": ["ok", "ok"],
    "width": [1, 2],
    "loss": [0.5, 0.25],
    "spectrum": [[1.0], [2.0, 3.0]],
}


def part(rows: Any, schema: pa.Schema = SCHEMA, provenance: Mapping[str, Any] | None = None) -> bytes:
    stamp = Stamp("width", "smoke", "main", "1", "train", "p", CELLS, ("main",), provenance or {})
    return encode(stamp, schema, rows).to_pybytes()


def rows_of(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data))


def changed(**columns: Any) -> dict[str, Any]:
    return {name: value for name, value in {**GOOD, **columns}.items() if value is not None}


def test_equal_arguments_give_equal_bytes() -> None:
    assert part(GOOD) == part(pd.DataFrame(GOOD))
    assert part(GOOD, provenance={"wall_s": 1.0, "device": "cpu"}) == part(
        GOOD, provenance={"device": "cpu", "wall_s": 1.0}
    )


def test_provenance_is_beside_the_rows() -> None:
    fast, slow = part(GOOD, provenance={"wall_s": 1.0}), part(GOOD, provenance={"wall_s": 99.0})
    assert fast != slow
    assert rows_of(fast).equals(rows_of(slow), check_metadata=False)


@pytest.mark.parametrize("cells", [2, 20_000])  # the second footer is longer than the first read of it
def test_the_stamp_comes_back_from_the_footer(tmp_path: Path, cells: int) -> None:
    names = tuple(f"c{index}" for index in range(cells))
    stamp = Stamp("width", "smoke", "main", "1", "train", "p", names, ("main", "curve"), {"libraries": {"torch": "2"}})
    path = tmp_path / "p.parquet"
    path.write_bytes(encode(stamp, SCHEMA, GOOD))
    found = decode(pafs.LocalFileSystem(), str(path))
    assert isinstance(found, Part)
    assert (found.stamp, found.schema()) == (stamp, SCHEMA)


@pytest.mark.parametrize("columns", [dict, pd.DataFrame])
def test_nan_and_infinity_are_values(columns: Callable[[dict[str, Any]], Any]) -> None:
    values = [math.nan, math.inf]
    found = rows_of(part(columns(changed(loss=values, spectrum=[np.array(values), [-math.inf]]))))
    spectra = found["spectrum"].combine_chunks().flatten()
    assert found["loss"].null_count == spectra.null_count == 0
    np.testing.assert_array_equal(found["loss"].to_numpy(), values)
    np.testing.assert_array_equal(spectra.to_numpy(), [*values, -math.inf])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"loss": None}, "table 'main': column 'loss' is missing"),
        ({"los": [1.0, 2.0]}, "table 'main': column 'los' is not in the schema"),
        ({"width": [1.5, 2.0]}, "column 'width': expected int64, found double"),
        ({"width": np.array([1.0, 2.0])}, "column 'width': expected int64, found double"),
        ({"loss": ["a", "b"]}, "column 'loss': expected double, found string"),
        ({"loss": [True, False]}, "column 'loss': expected double, found bool"),
        ({"loss": [1.0, "b"]}, "column 'loss': expected double, found mixed values"),
        ({"loss": [1, 2**53 + 1]}, "column 'loss': expected double, found int64"),
        ({"spectrum": [1.0, 2.0]}, "column 'spectrum': expected list<item: double>, found double"),
        ({"spectrum": [["a"], ["b"]]}, "column 'spectrum': expected list<item: double>, found list<item: string>"),
        ({"status": [1, 2]}, "column 'status': expected string, found int64"),
        ({"loss": [1.0]}, "column 'loss' has 1 values, 'cell' has 2"),
        ({"cell": ["c0", "c7"]}, "a row belongs to cell 'c7', not in pack 'p'"),
        ({"cell": ["c0", None]}, "a row belongs to cell 'None', not in pack 'p'"),
    ],
)
def test_rows_must_fit_the_schema(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(AssayError) as caught:
        part(changed(**columns))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_field_that_may_not_be_missing() -> None:
    schema = SCHEMA.set(3, pa.field("loss", pa.float64(), nullable=False))
    with pytest.raises(AssayError, match="column 'loss': 1 of 2 values are missing"):
        part(changed(loss=[1.0, None]), schema)


@pytest.mark.parametrize("names", [("loss", "cell"), ("loss",)])
def test_the_first_column_is_the_cell(names: tuple[str, ...]) -> None:
    with pytest.raises(AssayError, match="the schema's first column must be 'cell'"):
        part({}, pa.schema([(name, pa.string()) for name in names]))


@pytest.mark.parametrize(
    "columns",
    [
        {"loss": [1, 0]},
        {"loss": np.array([0.5, 0.1], dtype=np.float32)},
        {"width": np.array([1, 2], dtype=np.uint8)},
        {"width": pd.array([1, 2], dtype="Int64")},
        {"status": pd.Categorical(["ok", "diverged"])},
        {"status": np.array(["ok", "diverged"])},
        {"spectrum": np.array([[1, 2], [3, 4]], dtype=np.float32)},
        {"spectrum": [np.array([1.0, 2.0]), np.array([], dtype=np.float64)]},
        {"spectrum": pd.Series([[1], [2, 3]])},
    ],
)
def test_conversions_that_lose_nothing_are_made(columns: dict[str, Any]) -> None:
    ((name, values),) = columns.items()
    found = rows_of(part(changed(**columns)))
    assert found.schema.remove_metadata() == SCHEMA
    assert [np.array(value).tolist() for value in found[name].to_pylist()] == [np.array(v).tolist() for v in values]


@pytest.mark.parametrize(("found", "kept"), [(np.float16, True), (np.float32, True), (np.float64, False)])
def test_a_narrow_column_takes_no_wider_values(found: type, kept: bool) -> None:
    schema = SCHEMA.set(3, pa.field("loss", pa.float32()))
    rows = changed(loss=np.array([0.5, 0.25], dtype=found))
    if kept:
        assert rows_of(part(rows, schema))["loss"].to_pylist() == [0.5, 0.25]
    else:
        with pytest.raises(AssayError, match="column 'loss': expected float, found double"):
            part(rows, schema)


def test_provenance_must_be_json() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        part(GOOD, provenance={"device": object()})
