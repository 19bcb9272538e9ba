"""Reading parts as one table: every cell once, only the columns and rows asked for, in an order of the cells' own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from assay.errors import AssayError, unknown
from assay.files import first_line
from assay.part import Part

if TYPE_CHECKING:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds


def dataset(filesystem: pafs.FileSystem, parts: Sequence[Part], schema: pa.Schema) -> ds.Dataset:
    """Join parts into one dataset, to scan or to register with a query engine.

    A cell that two parts hold (a worker thought lost finished after its cells had been planned again) comes from the
    first of them alone. AssayError names a part whose columns are not those of the schema.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    for part in parts:
        if part.schema() != schema:
            raise AssayError(
                f"{part.path}: its columns are not those its study declares, though the version is the same: "
                "give the study a new version, or move the file away"
            )
    options = ds.ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
    parquet = ds.ParquetFileFormat(default_fragment_scan_options=options)

    def files(paths: list[str]) -> ds.Dataset:
        return ds.FileSystemDataset.from_paths(paths, schema=schema, format=parquet, filesystem=filesystem)

    whole: list[str] = []
    pieces: list[ds.Dataset] = []
    seen: set[str] = set()
    for part in parts:
        fresh = set(part.stamp.cells) - seen
        if len(fresh) == len(part.stamp.cells):
            whole.append(part.path)
        elif fresh:
            rows = files([part.path]).to_table(filter=pc.field("cell").isin(sorted(fresh)))
            pieces.append(ds.dataset(rows))
        seen |= fresh
    return ds.UnionDataset(schema, [files(whole), *pieces]) if pieces else files(whole)


def read(
    filesystem: pafs.FileSystem,
    parts: Sequence[Part],
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    filters: pc.Expression | list[Any] | None = None,
) -> pa.Table:
    """Read the rows of parts, sorted by cell and within a cell as they were written.

    `columns` selects and orders; `filters` is a `pyarrow.compute` expression or a list of tuples such as
    `[("width", ">=", 512)]` (a list of such lists means "or"). AssayError for an unknown column, a filter that does
    not fit the columns, or a part whose data is damaged.
    """
    columns = list(schema.names if columns is None else columns)
    for name in columns:
        if name not in schema.names:
            raise unknown("column", name, schema.names)
    expression = _expression(filters, schema)
    needed = columns if "cell" in columns else ["cell", *columns]
    try:
        rows = dataset(filesystem, parts, schema).to_table(columns=needed, filter=expression)
    except (pa.ArrowException, OSError) as error:
        raise damaged(filesystem, parts) or AssayError(f"cannot read the stored rows: {first_line(error)}") from error
    return rows.sort_by("cell").select(columns)  # Arrow's sort is stable


def _expression(filters: pc.Expression | list[Any] | None, schema: pa.Schema) -> pc.Expression | None:
    """Build the filter and try it on no rows: what it names must exist and compare."""
    if filters is None:
        return None
    try:
        expression = pq.filters_to_expression(filters) if isinstance(filters, list) else filters
        schema.empty_table().filter(expression)
    except (pa.ArrowException, TypeError, ValueError) as error:
        if missing := re.search(r"FieldRef\.Name\((.*?)\)", str(error)):
            raise unknown("column", missing[1], schema.names) from error
        raise AssayError(f"filters {filters}: {first_line(error)}") from error
    return expression


def damaged(filesystem: pafs.FileSystem, parts: Sequence[Part]) -> AssayError | None:
    """Find the part whose rows do not read, though its footer does, after a scan of all has failed."""
    for part in parts:
        try:
            pq.read_table(part.path, filesystem=filesystem, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            reason = first_line(error)
            return AssayError(f"{part.path}: its rows do not read ({reason}): move it away and run the study again")
    return None
