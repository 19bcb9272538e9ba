"""SQL over the stored tables: DuckDB scans the same rows that `Store.read` returns, and can touch nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from assay import scan
from assay.errors import AssayError, unknown
from assay.store import FAILURES, Store

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow.dataset as ds

RUNS = "runs"
"""Reserved table name: one row per pack, from the provenance of its parts."""
_SEALED = {"enable_external_access": "false", "lock_configuration": "true"}
_MISSING = re.compile(r"Table with name \"?(.+?)\"? does not exist")


@dataclass(frozen=True)
class Source:
    """The tables of one study at one scale that a statement may name, the primary table first.

    SQL knows the primary table as STUDY, every table as STUDY.TABLE, and the packs as STUDY.runs and STUDY.failures.
    """

    store: Store
    study: str
    scale: str
    version: str
    tables: Mapping[str, pa.Schema]

    @classmethod
    def undeclared(cls, store: Store, study: str, scale: str) -> Source:
        """The tables of a study whose declaration is not at hand, as its parts describe them: its latest version."""
        parts = [part for table in store.tables(study, scale) for part in store.parts(study, scale, table)[0]]
        version = max((part.stamp.version for part in parts), key=_version_order, default="")
        current = [part for part in parts if part.stamp.version == version and part.stamp.table != FAILURES]
        order = {table: place for part in current for place, table in enumerate(part.stamp.tables)}
        current.sort(key=lambda part: order[part.stamp.table])
        return cls(store, study, scale, version, {part.stamp.table: part.schema() for part in current})

    def names(self) -> dict[str, str]:
        """What SQL can name, and the table each name means."""
        names = {f"{self.study}.{table}": table for table in (*self.tables, RUNS, FAILURES)}
        primary = {self.study: next(iter(self.tables))} if self.tables else {}
        return primary | names

    def open(self, table: str) -> ds.Dataset | pd.DataFrame:
        """Open a table for a scan; AssayError as in `Store.read`."""
        if table == RUNS:
            return self.store.runs(self.study, self.scale)
        if table == FAILURES:
            return self.store.failures(self.study, self.scale)
        return self.store.dataset(self.study, self.scale, table, self.tables[table], self.version)

    def damaged(self, table: str) -> AssayError | None:
        """Find the part of a table whose rows do not read."""
        if table in (RUNS, FAILURES):
            return None
        parts = self.store.current(self.study, self.scale, table, self.version)
        return scan.damaged(self.store.filesystem, parts)


def sql(sources: Sequence[Source], statement: str) -> pd.DataFrame:
    """Answer one SELECT over the stored tables of some studies.

    Parts of other versions, repeated cells and bad files are treated as in `Store.read`. AssayError, in one line, for
    a statement that is not one SELECT, an unknown table (with the nearest name), any error of the database, or a
    damaged part.
    """
    import duckdb

    views = {name.lower(): (source, table) for source in sources for name, table in source.names().items()}
    # Opening a table reads the footers of all its parts, so only names that occur are opened. A column may have the
    # name of a study; that table is then opened for nothing, and must not fail the statement if it cannot be.
    words = set(re.findall(r"\w+", statement.lower()))
    named = sorted(name for name in views if words.issuperset(name.split(".")))
    closed: dict[str, AssayError] = {}
    with duckdb.connect(":memory:", config=dict(_SEALED)) as connection:
        try:
            _check_reads_only(connection.extract_statements(statement))
            for name in named or views:  # a statement that names none may ask what there is
                source, table = views[name]
                try:
                    _register(connection, name, source.open(table))
                except AssayError as error:
                    closed[name] = error
            return connection.execute(statement).df()
        except duckdb.Error as error:
            if missing := _MISSING.search(str(error)):
                for name, reason in closed.items():
                    if f".{name}".endswith(f".{missing[1].lower()}"):
                        raise reason from error
                raise unknown("table", missing[1], views) from error
            if not isinstance(error, duckdb.ParserException | duckdb.BinderException | duckdb.CatalogException):
                for source, table in (views[name] for name in named if name not in closed):
                    if damage := source.damaged(table):
                        raise damage from error
            raise AssayError(f"query: {_one_line(error)}") from error


def _version_order(version: str) -> tuple[list[int], str]:
    """Order versions by their numbers: 1.9, 1.10, 2."""
    return [int(number) for number in re.findall(r"\d+", version)], version


def _check_reads_only(statements: Sequence[duckdb.Statement]) -> None:
    """Refuse anything but one statement that only reads."""
    kinds = [str(statement.type).rpartition(".")[2] for statement in statements]
    if len(kinds) != 1:
        raise AssayError(f"query: one SELECT is needed, found {len(kinds)} statements")
    if kinds[0] not in ("SELECT", "EXPLAIN"):
        raise AssayError(f"query: only SELECT is allowed, found {kinds[0]}")


def _register(connection: duckdb.DuckDBPyConnection, name: str, rows: ds.Dataset | pd.DataFrame) -> None:
    """Make rows known under a name; `study.table` becomes a view in a schema of the study's name."""
    connection.register(name, rows)
    study, dot, table = name.partition(".")
    if dot:
        connection.execute(f'create schema if not exists "{study}"')
        connection.execute(f'create view "{study}"."{table}" as from temp.main."{name}"')


def _one_line(error: Exception) -> str:
    """Message of the database without the excerpt of the statement, in one line."""
    return " ".join(str(error).partition("\n\nLINE ")[0].split())
