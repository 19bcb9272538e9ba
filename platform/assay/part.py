"""One part of a table: a pack's rows as Parquet bytes, with the pack's identity and provenance in the footer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from assay.errors import AssayError
from assay.files import first_line

KEY = b"assay"
"""Key of the JSON stamp in a part's Parquet metadata."""
ROW_GROUP = 65_536
"""Rows per row group: what a filter can skip inside a large part."""
_TAIL = 65_536
"""Bytes read from the end of a file at first; a footer that is longer costs a second read."""


@dataclass(frozen=True)
class Stamp:
    """Who wrote a part: the pack, its cells, all tables of its trial in the order of writing, the provenance."""

    study: str
    scale: str
    table: str
    version: str
    trial: str
    pack: str
    cells: tuple[str, ...]
    tables: tuple[str, ...]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A stored part: where it lies, its stamp, and its Parquet footer."""

    path: str
    stamp: Stamp
    footer: pq.FileMetaData

    def schema(self) -> pa.Schema:
        """Arrow schema of the rows, without metadata."""
        return self.footer.schema.to_arrow_schema().remove_metadata()


@dataclass(frozen=True)
class Problem:
    """A file among the parts that is not one: it is never read, and its cells count as not stored."""

    path: str
    reason: str
    truncated: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def encode(stamp: Stamp, schema: pa.Schema, frame: Any) -> pa.Buffer:
    """Serialise the rows of a pack to Parquet bytes; equal arguments give equal bytes.

    `frame` is a DataFrame or a mapping of columns (lists, arrays; a 2-D array for a list column). AssayError when it
    does not fit the schema, or when a row belongs to a cell that the stamp does not name.
    """
    where = f"table {stamp.table!r}"
    if schema.names[:1] != ["cell"] or schema.field("cell").type != pa.string():
        raise AssayError(f"{where}: the schema's first column must be 'cell' (string)")
    rows = to_arrow(frame, schema, where)
    strays = set(rows.column("cell").unique().to_pylist()) - set(stamp.cells)
    if strays:
        raise AssayError(f"{where}: a row belongs to cell {min(map(str, strays))!r}, not in pack {stamp.pack!r}")
    text = json.dumps(asdict(stamp), sort_keys=True)
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows.replace_schema_metadata({KEY: text.encode()}),
        sink,
        compression="zstd",
        use_dictionary=[field.name for field in schema if field.type == pa.string()],  # numbers are smaller without
        row_group_size=ROW_GROUP,
        write_page_checksum=True,
    )
    return sink.getvalue()


def decode(filesystem: pafs.FileSystem, path: str) -> Part | Problem:
    """Read a part's footer, or find what is wrong with the file. OSError if it cannot be reached."""
    with filesystem.open_input_file(path) as file:
        size = file.size()
        tail = file.read_at(min(size, _TAIL), max(0, size - _TAIL))
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if len(tail) < length <= size:
            tail = file.read_at(length, size - length)
    try:  # from memory: whatever fails now is the file's fault, not the network's
        footer = pq.read_metadata(pa.BufferReader(tail[-length:]))
    except (pa.ArrowException, OSError):
        return Problem(path, f"truncated, or not a Parquet file ({size} bytes)", truncated=True)
    try:
        fields = json.loads((footer.metadata or {})[KEY])
        stamp = Stamp(**fields | {"cells": tuple(fields["cells"]), "tables": tuple(fields["tables"])})
    except (KeyError, TypeError, ValueError):
        return Problem(path, "a foreign file: Parquet, but not written by Assay")
    return Part(path, stamp, footer)


def to_arrow(frame: Any, schema: pa.Schema, where: str) -> pa.Table:
    """Build a table of exactly this schema; only conversions that lose nothing are made, NaN stays NaN.

    AssayError names the column that is missing, undeclared, of another length, or of another type.
    """
    names = [str(name) for name in getattr(frame, "columns", frame)]
    for name in schema.names:
        if name not in names:
            raise AssayError(f"{where}: column {name!r} is missing")
    for name in names:
        if name not in schema.names:
            raise AssayError(f"{where}: column {name!r} is not in the schema")
    arrays: list[pa.Array] = []
    for field in schema:
        array = _column(frame[field.name], field, f"{where}, column {field.name!r}")
        if arrays and len(array) != len(arrays[0]):
            first = schema.names[0]
            raise AssayError(f"{where}: column {field.name!r} has {len(array)} values, {first!r} has {len(arrays[0])}")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(values: Any, field: pa.Field, where: str) -> pa.Array:
    """Convert one column to the type of its field."""
    try:
        found = _infer(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise AssayError(f"{where}: expected {field.type}, found mixed values: {first_line(error)}") from error
    if found.null_count and not field.nullable:
        raise AssayError(f"{where}: {found.null_count} of {len(found)} values are missing")
    if found.type == field.type:
        return found
    if not _widens(found.type, field.type):
        raise AssayError(f"{where}: expected {field.type}, found {found.type}")
    try:
        return found.cast(field.type)
    except pa.ArrowInvalid as error:
        raise AssayError(f"{where}: expected {field.type}, found {found.type}: {first_line(error)}") from error


def _infer(values: Any) -> pa.Array:
    """Convert to Arrow in the type the values have themselves."""
    import numpy as np

    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype):  # a NumPy array, or a pandas column that holds one
        array = np.asarray(values)
        if array.ndim == 1:
            # a list first: given an object array as it is, Arrow would take NaN for missing
            return pa.array(array.tolist() if array.dtype == object else array, from_pandas=False)
        return pa.array(list(array) if array.ndim == 2 else array.tolist())
    array = pa.array(values, from_pandas=dtype is not None)  # pandas' own types: strings, categories
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _widens(found: pa.DataType, expected: pa.DataType) -> bool:
    """Tell whether values of one type may be stored as the other; the cast itself checks that none changes."""
    types = pa.types
    if types.is_null(found) or found == expected:
        return True
    if types.is_dictionary(found):
        return _widens(found.value_type, expected)
    if types.is_integer(found):
        return types.is_integer(expected) or types.is_floating(expected)
    if types.is_floating(found):
        return types.is_floating(expected) and found.bit_width <= expected.bit_width
    if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
        return types.is_list(expected) and _widens(found.value_type, expected.value_type)
    return types.is_large_string(found) and types.is_string(expected)
