"""The Parquet store: one immutable part per pack and table, in a local folder or an object store.

`<root>/<study>/<scale>/<table>/<pack>.parquet`. Writers never coordinate: a part appears whole or not at all, and a
pack that runs twice replaces its part by the same rows. A pack is stored when every table of its trial has its part.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs

from assay import files, scan
from assay.errors import AssayError
from assay.part import Part, Problem, Stamp, decode, encode

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

FAILURES = "failures"
"""Reserved table name: one part per failed pack, one row per cell of it."""
FAILURE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("cell", "pack", "factors", "error", "message", "traceback")]
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Store:
    """Tables of all studies under one root: a folder, or a URI such as `s3://bucket/prefix`.

    `root` opens the same store again; `str(store)` is the root without credentials, for messages. A store pickles as
    its root, so that a worker connects by itself. AssayError for a URI that cannot be understood.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.filesystem, self._base, self.root = files.open_root(os.fspath(root))

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    def __str__(self) -> str:
        return files.public(self.root)

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"

    def folder(self, study: str, scale: str, *table: str) -> str:
        """Path on the store's filesystem of a study at a scale, or of one of its tables."""
        return "/".join((self._base, *(_checked(name) for name in (study, scale, *table))))

    def studies(self) -> list[str]:
        """Names of the folders under the root."""
        return self._folders(self._base)

    def scales(self, study: str) -> list[str]:
        """Scales at which a study has something stored."""
        return self._folders(f"{self._base}/{_checked(study)}")

    def tables(self, study: str, scale: str) -> list[str]:
        """Tables of a study that have a folder, `failures` among them."""
        return self._folders(self.folder(study, scale))

    def _folders(self, path: str) -> list[str]:
        return [name for name in files.visible(self.filesystem, path, pafs.FileType.Directory) if _NAME.fullmatch(name)]

    # Writing

    def commit(
        self,
        study: str,
        scale: str,
        pack: str,
        parts: Mapping[str, tuple[pa.Schema, Any]],
        *,
        version: str,
        trial: str,
        cells: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> None:
        """Publish a pack's rows: one part per table of its trial, in order; the last one makes the pack stored.

        `parts` maps each table to its schema and rows. Nothing is published if any table does not fit its schema
        (AssayError). Equal arguments give equal bytes: time stamps belong in `provenance`, never in rows. OSError if
        the store cannot be written.
        """
        blobs = {}
        for table, (schema, frame) in parts.items():
            path = self._path(study, scale, table, pack)
            stamp = Stamp(study, scale, table, version, trial, pack, tuple(cells), tuple(parts), provenance)
            blobs[path] = encode(stamp, schema, frame)
        for path, blob in blobs.items():
            files.publish(self.filesystem, path, blob)

    def _path(self, study: str, scale: str, table: str, pack: str) -> str:
        return f"{self.folder(study, scale, table)}/{_checked(pack)}.parquet"

    def ensure_writable(self) -> None:
        """Write and delete a probe under the root; AssayError in one line if that fails."""
        probe = f"{self._base}/.probe-{uuid.uuid4().hex}"
        try:
            files.publish(self.filesystem, probe, b"probe")
            self.filesystem.delete_file(probe)
        except OSError as error:
            raise AssayError(
                f"cannot write to the results root {self}: {files.first_line(error)}; choose another with --results"
            ) from error

    def sweep_temporaries(self, older_than_s: float) -> int:
        """Delete what killed writers left behind and return how many; object stores keep no such files."""
        return files.sweep_temporaries(self._base, older_than_s) if files.is_local(self.filesystem) else 0

    # Failed packs

    def record_failure(
        self,
        study: str,
        scale: str,
        pack: str,
        cells: Sequence[tuple[str, Mapping[str, Any]]],
        *,
        error: str,
        message: str,
        traceback: str,
    ) -> None:
        """Keep what stopped a pack: one row for each of its cells (id, factors). A later record replaces it."""
        rows = {
            "cell": [cell for cell, _ in cells],
            "pack": [pack] * len(cells),
            "factors": [json.dumps(dict(factors), sort_keys=True) for _, factors in cells],
            "error": [error] * len(cells),
            "message": [message] * len(cells),
            "traceback": [traceback] * len(cells),
        }
        parts = {FAILURES: (FAILURE_SCHEMA, rows)}
        self.commit(study, scale, pack, parts, version="", trial="", cells=rows["cell"], provenance={})

    def clear_failure(self, study: str, scale: str, pack: str) -> None:
        """Forget a pack's failure, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self._path(study, scale, FAILURES, pack))

    def failures(self, study: str, scale: str) -> pd.DataFrame:
        """Cells of failed packs: cell, pack, factors (JSON), error, message, traceback.

        A cell that has been stored since, perhaps in another pack, is left out; so is an unreadable record, whose
        cells then count as not tried.
        """
        parts = self.parts(study, scale, FAILURES)[0]
        frame = scan.read(self.filesystem, parts, FAILURE_SCHEMA).to_pandas()
        if len(frame):
            found = self._all_parts(study, scale)
            stored = {cell for table in found for part in _complete(table, found) for cell in part.stamp.cells}
            frame = frame[~frame["cell"].isin(stored)].reset_index(drop=True)
        return frame

    # Parts

    def parts(self, study: str, scale: str, table: str) -> tuple[list[Part], list[Problem]]:
        """All parts of a table, of every version, sorted by pack; and the files there that are no parts of it.

        Only footers are read. AssayError if the store cannot be reached.
        """
        folder = self.folder(study, scale, table)

        def read(name: str) -> Part | Problem | None:
            path = f"{folder}/{name}"
            try:
                with files.reaching(path):
                    part = decode(self.filesystem, path)
            except FileNotFoundError:  # moved away since it was listed
                return None
            if isinstance(part, Part):
                stamp = part.stamp
                home = (stamp.study, stamp.scale, stamp.table, f"{stamp.pack}.parquet")
                if home != (study, scale, table, name):
                    return Problem(path, f"a foreign file: it is {'/'.join(home)}")
            return part

        names = files.visible(self.filesystem, folder, pafs.FileType.File)
        found = list(files.each(self.filesystem, read, [name for name in names if name.endswith(".parquet")]))
        return [item for item in found if isinstance(item, Part)], [item for item in found if isinstance(item, Problem)]

    def _all_parts(self, study: str, scale: str) -> dict[str, list[Part]]:
        tables = [table for table in self.tables(study, scale) if table != FAILURES]
        return {table: self.parts(study, scale, table)[0] for table in tables}

    def problems(self, study: str, scale: str) -> list[Problem]:
        """Truncated and foreign files among the parts of a study: they are never read, their cells not stored."""
        return [bad for table in self.tables(study, scale) for bad in self.parts(study, scale, table)[1]]

    def set_aside(self, study: str, scale: str) -> list[Problem]:
        """Hide the truncated files of a study (`.<name>.bad`), so that its tables read again.

        Foreign files stay where they are: they may be whole, and someone's.
        """
        problems = [problem for problem in self.problems(study, scale) if problem.truncated]
        for problem in problems:
            folder, name = problem.path.rsplit("/", 1)
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.move(problem.path, f"{folder}/.{name}.bad")
        return problems

    # Reading

    def stored(self, study: str, scale: str, version: str, trials: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
        """Ids of the cells of each trial that are stored in every one of its tables, in this version of the study.

        `trials` maps a trial to its tables. A bad part counts as not stored, so that its pack is measured again.
        """
        tables = {table for names in trials.values() for table in names}
        found = {
            table: [part.stamp for part in self.parts(study, scale, table)[0] if part.stamp.version == version]
            for table in tables
        }
        there = {(table, stamp.trial, stamp.pack) for table, stamps in found.items() for stamp in stamps}
        return {
            trial: {
                cell
                for stamp in found[names[0]]
                if all((table, trial, stamp.pack) in there for table in names)
                for cell in stamp.cells
            }
            for trial, names in trials.items()
        }

    def current(self, study: str, scale: str, table: str, version: str) -> list[Part]:
        """Parts of a table that count: of this version, and of packs that are stored in every table of their trial.

        AssayError names a truncated or foreign file among them.
        """
        parts, problems = self.parts(study, scale, table)
        found = {table: [part for part in parts if part.stamp.version == version]}
        for other in sorted({name for part in found[table] for name in part.stamp.tables} - {table}):
            found[other], more = self.parts(study, scale, other)
            problems += more
        if problems:
            others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise AssayError(f"{problems[0]}{others}: move it away, or run the study again to replace it")
        return _complete(table, found)

    def read(
        self,
        study: str,
        scale: str,
        table: str,
        schema: pa.Schema,
        version: str,
        columns: Sequence[str] | None = None,
        filters: pc.Expression | list[Any] | None = None,
    ) -> pa.Table:
        """Read a table: every stored cell once, sorted by cell, the same rows whatever packs they came in.

        See `scan.read` for columns and filters. An empty table if nothing is stored. AssayError names a truncated or
        foreign file, an unknown column, or a filter that does not fit.
        """
        return scan.read(self.filesystem, self.current(study, scale, table, version), schema, columns, filters)

    def dataset(self, study: str, scale: str, table: str, schema: pa.Schema, version: str) -> ds.Dataset:
        """Return the rows that `read` would, in any order, as a dataset for a query engine to scan."""
        return scan.dataset(self.filesystem, self.current(study, scale, table, version), schema)

    def runs(self, study: str, scale: str) -> pd.DataFrame:
        """One row per stored pack, of every version: trial, pack, cells (their number), version, then its provenance.

        Nested provenance is flattened (`libraries_torch`); a list is JSON text.
        """
        import pandas as pd

        first = ["trial", "pack", "cells", "version"]
        found = self._all_parts(study, scale)
        rows = []
        for table in found:
            for stamp in (part.stamp for part in _complete(table, found) if part.stamp.tables[0] == table):
                ours = (stamp.trial, stamp.pack, len(stamp.cells), stamp.version)
                rows.append(dict(_flat("", stamp.provenance)) | dict(zip(first, ours, strict=True)))
        frame = pd.DataFrame(rows, columns=first + sorted({name for row in rows for name in row} - set(first)))
        return frame.sort_values(["trial", "pack"], ignore_index=True)


def _complete(table: str, found: Mapping[str, Sequence[Part]]) -> list[Part]:
    """Parts of a table whose pack has a part of the same version in every table of its trial."""
    there = {(name, part.stamp.pack, part.stamp.version) for name, parts in found.items() for part in parts}
    return [
        part
        for part in found[table]
        if all((name, part.stamp.pack, part.stamp.version) in there for name in part.stamp.tables)
    ]


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give nested provenance one level of names that SQL takes without quotes."""
    for key, value in values.items():
        name = re.sub(r"\W", "_", f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from _flat(f"{name}_", value)
        else:
            yield name, json.dumps(value) if isinstance(value, list) else value


def _checked(name: str) -> str:
    """Return a name that is safe as that of a folder or file; AssayError otherwise."""
    if not _NAME.fullmatch(name):
        raise AssayError(f"{name!r} cannot name a file: use letters, digits, '_', '-' and '.', a letter or digit first")
    return name
