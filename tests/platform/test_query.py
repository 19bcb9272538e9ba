"""SQL over the store: names of tables, one-line errors, nothing read or written besides the tables."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.errors import AssayError
from assay.query import Source, sql
from assay.store import Store

MAIN = pa.schema([("cell", pa.string()), ("width", pa.int64()), ("loss", pa.float64())])
CURVE = pa.schema([("cell", pa.string()), ("step", pa.int64()), ("spectrum", pa.list_(pa.float64()))])
TABLES = {"main": MAIN, "curve": CURVE}


def commit(store: Store, study: str, pack: str, cells: Sequence[int], version: str = "1") -> None:
    ids = [f"c{cell}" for cell in cells]
    main = {"cell": ids, "width": [2**cell for cell in cells], "loss": [1.0 / (cell + 1) for cell in cells]}
    curve = {
        "cell": np.repeat(ids, 2),
        "step": [0, 1] * len(ids),
        "spectrum": [[float(cell), step] for cell in cells for step in (0.0, math.nan)],
    }
    parts: dict[str, tuple[pa.Schema, Any]] = {"main": (MAIN, main), "curve": (CURVE, curve)}
    provenance = {"device": "cpu", "wall_s": 0.5, "libraries": {"torch": "2.0"}}
    store.commit(study, "smoke", pack, parts, version=version, trial="train", cells=ids, provenance=provenance)


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Two studies of 4 and 2 cells; one study is named like one of its columns."""
    store = Store(tmp_path / "results")
    commit(store, "width", "a", [0, 1])
    commit(store, "width", "b", [2, 3])
    commit(store, "depth", "a", [4, 5])
    store.record_failure(
        "width", "smoke", "z", [("c9", {"width": 512})], error="ValueError", message="no", traceback="…"
    )
    return [Source(store, study, "smoke", "1", TABLES) for study in ("width", "depth")]


def rows(sources: list[Source], statement: str) -> list[tuple[Any, ...]]:
    return list(sql(sources, statement).itertuples(index=False, name=None))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("select width, avg(loss) from width group by width order by width", [(2**n, 1 / (n + 1)) for n in range(4)]),
        ("select count(*), max(main.width) from width.main", [(4, 8)]),
        ("SELECT COUNT(*) FROM WIDTH.Curve AS c WHERE c.step = 1", [(4,)]),
        ("select list_sum(spectrum) from depth.curve where step = 0 order by 1", [(4.0,), (5.0,)]),
        ("select count(*) from width.curve where isnan(spectrum[2])", [(4,)]),
        ("select w.loss from width w join width.curve c using (cell) where w.width = 8 and c.step = 0", [(0.25,)]),
        ("select width from width union all select width from depth order by 1 desc limit 2", [(32,), (16,)]),
        ("with big as (select * from width where width > 2) select count(*) from big", [(2,)]),
        ("from depth select sum(width)", [(48.0,)]),
        ("select pack, cells, libraries_torch, wall_s from width.runs", [("a", 2, "2.0", 0.5), ("b", 2, "2.0", 0.5)]),
        ("select cell, pack, error from width.failures", [("c9", "z", "ValueError")]),
        ("select count(*) from depth.failures", [(0,)]),
        ("select 1 + 1", [(2,)]),
    ],
)
def test_tables_go_by_the_names_of_their_studies(
    sources: list[Source], statement: str, expected: list[tuple[Any, ...]]
) -> None:
    assert rows(sources, statement) == expected


def test_the_names_can_be_asked_for(sources: list[Source]) -> None:
    names = {name for (name,) in rows(sources, "select table_name from information_schema.tables")}
    assert {"width", "depth", "main", "curve", "runs", "failures"} <= names
    columns = rows(sources, "select column_name, column_type from (describe width)")
    assert columns == [("cell", "VARCHAR"), ("width", "BIGINT"), ("loss", "DOUBLE")]


def test_the_rows_are_those_that_read_returns(sources: list[Source]) -> None:
    store = sources[0].store
    commit(store, "width", "again", [3, 4])  # cell 3 a second time
    commit(store, "width", "old", [7], version="0")
    commit(store, "width", "half", [6])
    Path(store.folder("width", "smoke", "curve"), "half.parquet").unlink()
    expected = store.read("width", "smoke", "main", MAIN, "1").to_pylist()
    assert [row["cell"] for row in expected] == [f"c{n}" for n in range(5)]
    assert sql(sources, "select * from width order by cell").to_dict("records") == expected
    assert rows(sources, "select count(*), count(distinct cell) from width.curve") == [(10, 5)]


def test_a_study_that_is_not_declared_describes_itself(sources: list[Source]) -> None:
    store = sources[0].store
    for version in ("9", "10"):
        commit(store, "width", f"of{version}", [5], version=version)
    found = Source.undeclared(store, "width", "smoke")
    assert found == Source(store, "width", "smoke", "10", TABLES)
    assert list(found.tables) == ["main", "curve"]  # the primary table first
    assert rows([found], "select cell from width") == [("c5",)]
    assert rows([found], "select count(*) from width.failures") == [(1,)]
    nothing = Source.undeclared(store, "breadth", "smoke")
    assert rows([nothing], "select count(*) from breadth.runs") == [(0,)]
    with pytest.raises(AssayError, match="unknown table 'breadth'"):
        sql([nothing], "select * from breadth")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("select * from widht", "unknown table 'widht'; did you mean 'width'?"),
        ("select * from width.curv", "unknown table 'width.curv'; did you mean 'width.curve'?"),
        ("select * from widht.curve", "unknown table 'widht.curve'; did you mean 'width.curve'?"),
        ("select * from width, 'parts.parquet'", "query: Permission Error: Cannot access file"),
        ("select * from sources", "unknown table 'sources'; "),  # a Python variable right here
        ("select los from width", 'query: Binder Error: Referenced column "los" not found in FROM clause! Candidate'),
        ("selec 1", 'query: Parser Error: syntax error at or near "selec"'),
        ("", "query: one SELECT is needed, found 0 statements"),
        ("select 1; select 2", "query: one SELECT is needed, found 2 statements"),
        ("drop view width", "query: only SELECT is allowed, found DROP"),
        ("create table mine as select * from width", "query: only SELECT is allowed, found CREATE"),
        ("set threads = 1", "query: only SELECT is allowed, found SET"),
        ("copy (select 1) to 'out.csv'", "query: only SELECT is allowed, found COPY"),
        ("attach 'out.db'", "query: only SELECT is allowed, found ATTACH"),
        ("select * from read_text('secret.txt')", "query: Permission Error: Cannot access file"),
        ("select * from glob('*')", "query: Permission Error: Cannot access"),
        ("select cast(cell as integer) from width", "query: Conversion Error: Could not convert string 'c"),
    ],
)
def test_a_wrong_statement_is_one_line(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("hush")
    pq.write_table(pa.table({"cell": ["c"]}), tmp_path / "parts.parquet")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AssayError) as caught:
        sql(sources, statement)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("table", ["main", "curve"])
def test_a_bad_part_stops_only_those_who_read_its_table(sources: list[Source], table: str) -> None:
    folder = Path(sources[0].store.folder("width", "smoke", table))
    (folder / "alien.parquet").write_bytes(b"PAR1")
    assert rows(sources, "select count(width) from depth") == [(2,)]  # a column of the name of a study
    assert rows(sources, "select count(*) from depth join depth.curve as curve using (cell)") == [(4,)]
    with pytest.raises(AssayError, match="query: Conversion Error"):
        sql(sources, "select cast(cell as integer), width from depth")
    for statement in (f"select count(*) from width.{table}", f"select 1 from width.runs, Width.{table.title()}"):
        with pytest.raises(AssayError, match=rf"width/smoke/{table}/alien\.parquet: truncated"):
            sql(sources, statement)


def test_a_damaged_part_is_named(sources: list[Source]) -> None:
    path = Path(sources[0].store.folder("width", "smoke", "main"), "b.parquet")
    chunk = pq.read_metadata(path).row_group(0).column(MAIN.get_field_index("loss"))
    data = bytearray(path.read_bytes())
    data[(chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AssayError, match=r"main/b\.parquet: its rows do not read"):
        sql(sources, "select sum(loss) from width")
    assert rows(sources, "select sum(width) from width") == [(15.0,)]


def test_a_million_rows_group_in_two_seconds(tmp_path: Path) -> None:
    """In CPU seconds of all threads: the machine may be busy with other things."""
    store = Store(tmp_path / "results")
    measured = [("step", pa.int64()), ("loss", pa.float64()), ("x", pa.float64())]
    schema = pa.schema([("cell", pa.string()), ("width", pa.int64()), *measured])
    packs, cells, steps = 50, 20, 1000
    rng = np.random.default_rng(0)
    total = 0.0
    for pack in range(packs):
        ids = [f"c{pack}-{cell}" for cell in range(cells)]
        frame = {
            "cell": np.repeat(ids, steps),
            "width": np.full(cells * steps, 2 ** (pack % 5)),
            "step": np.tile(np.arange(steps), cells),
            "loss": rng.random(cells * steps),
            "x": rng.random(cells * steps),
        }
        total += frame["loss"].sum()
        store.commit(
            "width", "smoke", f"p{pack}", {"main": (schema, frame)}, version="1", trial="t", cells=ids, provenance={}
        )
    times = []
    for _ in range(3):
        start = time.process_time()
        found = sql(
            [Source(store, "width", "smoke", "1", {"main": schema})],
            "select width, count(*) as n, sum(loss) as loss from width group by width order by width",
        )
        times.append(time.process_time() - start)
    assert found["width"].tolist() == [1, 2, 4, 8, 16]
    assert found["n"].tolist() == [packs * cells * steps // 5] * 5
    np.testing.assert_allclose(found["loss"].sum(), total, rtol=1e-12)
    assert min(times) < 2.0


def test_importing_the_store_is_cheap() -> None:
    heavy = ("ray", "torch", "pandas", "duckdb", "pyarrow.dataset", "altair")
    code = f"import sys, assay.store, assay.query; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
