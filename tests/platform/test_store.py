"""The Parquet store: whole parts or none, every cell once, bad files named, the same on a folder and on S3."""

from __future__ import annotations

import math
import pickle
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from assay.errors import AssayError
from assay.query import Source, sql
from assay.store import Store

AT = ("width", "smoke")
SCHEMA = pa.schema(
    [("cell", pa.string()), ("width", pa.int64()), ("loss", pa.float64()), ("spectrum", pa.list_(pa.float64()))]
)
CURVE = pa.schema([("cell", pa.string()), ("step", pa.int64()), ("loss", pa.float64())])
STEPS = 5


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Serve S3 on the loopback interface; the URI of an empty bucket, up to its prefix."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    uri = f"s3://key:hush@bucket/{{}}?endpoint_override={host}:{port}&scheme=http"
    pafs.FileSystem.from_uri(uri.format("") + "&allow_bucket_creation=true")[0].create_dir("bucket")
    yield uri
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind: whoever asks for it runs on both."""
    if request.param == "folder":
        return Store(tmp_path / "results")
    return Store(request.getfixturevalue("s3").format(uuid.uuid4().hex))


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def ids(*numbers: int) -> list[str]:
    return [f"c{number:03d}" for number in numbers]


def main_rows(cells: Sequence[str]) -> pd.DataFrame:
    """One row per cell, a function of the cell alone."""
    numbers = [int(cell[1:]) for cell in cells]
    return pd.DataFrame(
        {
            "cell": list(cells),
            "width": [2 ** (number % 4) for number in numbers],
            "loss": [math.sin(number) for number in numbers],
            "spectrum": [np.cos(np.arange(number % 3 + 1) * number) for number in numbers],
        }
    )


def curve_rows(cells: Sequence[str]) -> dict[str, Any]:
    """STEPS rows per cell, the steps not in order: the order of writing is what must come back."""
    return {
        "cell": np.repeat(list(cells), STEPS),
        "step": np.tile([3, 1, 4, 0, 2], len(cells)),
        "loss": np.concatenate([np.exp(-np.arange(STEPS) * int(cell[1:])) for cell in cells]),
    }


def commit(store: Store, pack: str, cells: Sequence[str], *, version: str = "1", curve: bool = False) -> None:
    parts: dict[str, tuple[pa.Schema, Any]] = {"main": (SCHEMA, main_rows(cells))}
    if curve:
        parts["curve"] = (CURVE, curve_rows(cells))
    provenance = {"libraries": {"torch": "2.0", "scikit-learn": "1.5"}, "seeds": [1, 2], "wall_s": 0.25}
    store.commit(*AT, pack, parts, version=version, trial="train", cells=cells, provenance=provenance)


def read(store: Store, version: str = "1", **options: Any) -> pa.Table:
    return store.read(*AT, "main", SCHEMA, version, **options)


def stored(store: Store, version: str = "1", tables: tuple[str, ...] = ("main",)) -> set[str]:
    return store.stored(*AT, version, {"train": tables})["train"]


def path_of(store: Store, pack: str, table: str = "main") -> str:
    return f"{store.folder(*AT, table)}/{pack}.parquet"


def get(store: Store, path: str) -> bytes:
    return bytes(store.filesystem.open_input_file(path).read())


def put(store: Store, path: str, data: bytes) -> None:
    with store.filesystem.open_output_stream(path) as stream:
        stream.write(data)


def files(store: Store) -> list[str]:
    """Every file of the store, hidden ones too."""
    selector = pafs.FileSelector(store.folder(*AT), recursive=True, allow_not_found=True)
    return [info.path for info in store.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]


# What goes in comes out


def test_rows_come_back_as_they_were_written(store: Store) -> None:
    cells = ids(2, 0, 1)
    commit(store, "p", cells, curve=True)
    expected = main_rows(sorted(cells))
    found = read(store)
    assert found.schema == SCHEMA
    assert found.to_pydict() == pa.Table.from_pandas(expected, schema=SCHEMA, preserve_index=False).to_pydict()
    curve = store.read(*AT, "curve", CURVE, "1")
    assert curve.to_pydict() == pa.table(curve_rows(sorted(cells)), CURVE).to_pydict()
    assert (store.studies(), store.scales("width")) == (["width"], ["smoke"])


def test_the_table_does_not_depend_on_the_packs(store: Store) -> None:
    cells = ids(*range(12))
    commit(store, "all", cells, curve=True)
    whole = [read(store), store.read(*AT, "curve", CURVE, "1")]
    random.Random(0).shuffle(cells)
    for size in (1, 5):
        place, *query = store.root.split("?")
        again = Store("?".join([f"{place}-{size}", *query]))
        for start in range(0, len(cells), size):
            commit(again, f"p{start}", cells[start : start + size], curve=True)
        assert read(again).equals(whole[0])
        assert again.read(*AT, "curve", CURVE, "1").equals(whole[1])


def test_an_empty_store_is_an_empty_table(store: Store) -> None:
    assert read(store).num_rows == 0
    assert read(store).schema == SCHEMA
    assert stored(store) == set()
    assert len(store.runs(*AT)) == len(store.failures(*AT)) == 0
    assert store.problems(*AT) == []
    assert store.studies() == store.scales("width") == []


def test_committing_again_gives_the_same_bytes(store: Store) -> None:
    commit(store, "p", ids(0, 1))
    first = get(store, path_of(store, "p"))
    commit(store, "p", ids(0, 1))
    assert get(store, path_of(store, "p")) == first
    assert files(store) == [path_of(store, "p")]


def test_other_readers_see_plain_parquet(folder: Store) -> None:
    commit(folder, "a", ids(0, 1))
    commit(folder, "b", ids(2))
    for name in (f".c.parquet.{uuid.uuid4().hex}.tmp", ".c.parquet", "_metadata.parquet"):
        Path(folder.folder(*AT, "main"), name).write_bytes(b"half a part")
    for name in (".git", "my notes"):
        Path(folder.root, name).mkdir()
    assert folder.studies() == ["width"]
    frame = pd.read_parquet(folder.folder(*AT, "main")).sort_values("cell", ignore_index=True)
    pd.testing.assert_frame_equal(frame, read(folder).to_pandas())


def test_a_store_pickles_as_its_root(store: Store) -> None:
    commit(store, "p", ids(0))
    assert read(pickle.loads(pickle.dumps(store))).equals(read(store))
    assert b"S3FileSystem" not in pickle.dumps(store)


def test_nothing_is_published_when_a_later_table_does_not_fit(store: Store) -> None:
    parts = {"main": (SCHEMA, main_rows(ids(0))), "curve": (CURVE, {"cell": ids(0), "step": ["x"], "loss": [1.0]})}
    with pytest.raises(AssayError, match="table 'curve', column 'step'"):
        store.commit(*AT, "p", parts, version="1", trial="train", cells=ids(0), provenance={})
    assert files(store) == []


# What counts as stored


def test_parts_of_another_version_do_not_count(store: Store) -> None:
    commit(store, "old", ids(0, 1), version="1")
    commit(store, "new", ids(1, 2), version="2")
    assert stored(store, "1") == set(ids(0, 1))
    assert stored(store, "2") == set(ids(1, 2))
    assert read(store, "2")["cell"].to_pylist() == ids(1, 2)
    commit(store, "old", ids(0, 1), version="2")  # the same pack in the new version replaces its part
    assert stored(store, "1") == set()
    assert stored(store, "2") == set(ids(0, 1, 2))


def test_a_pack_is_stored_when_every_table_has_its_part(store: Store) -> None:
    tables = ("main", "curve")
    commit(store, "whole", ids(0), curve=True)
    commit(store, "half", ids(1), curve=True)
    commit(store, "mixed", ids(2), curve=True)
    commit(store, "mixed", ids(2), curve=True, version="2")
    assert stored(store, tables=tables) == set(ids(0, 1))
    store.filesystem.delete_file(path_of(store, "half", "curve"))  # killed before its last table
    store.filesystem.delete_file(path_of(store, "mixed", "curve"))
    assert stored(store, tables=tables) == set(ids(0))
    assert stored(store, "2", tables=tables) == set()
    assert read(store)["cell"].to_pylist() == ids(0)
    assert read(store, "2").num_rows == 0
    assert list(store.runs(*AT)["pack"]) == ["whole"]


def test_a_trial_counts_its_own_packs(folder: Store) -> None:
    commit(folder, "p", ids(0))
    found = folder.stored(*AT, "1", {"train": ("main",), "other": ("main",), "third": ("absent",)})
    assert found == {"train": set(ids(0)), "other": set(), "third": set()}


def test_a_cell_in_two_parts_is_read_once(store: Store) -> None:
    commit(store, "a", ids(0, 1, 2), curve=True)
    commit(store, "b", ids(2, 3), curve=True)  # partly new
    commit(store, "c", ids(0, 3), curve=True)  # nothing new
    assert stored(store, tables=("main", "curve")) == set(ids(0, 1, 2, 3))
    whole = pa.Table.from_pandas(main_rows(ids(0, 1, 2, 3)), schema=SCHEMA, preserve_index=False)
    assert read(store).to_pydict() == whole.to_pydict()
    curve = store.read(*AT, "curve", CURVE, "1")
    assert curve.to_pydict() == pa.table(curve_rows(ids(0, 1, 2, 3)), CURVE).to_pydict()
    assert read(store, columns=["width"], filters=[("cell", "=", "c003")])["width"].to_pylist() == [8]


def test_runs_has_one_row_per_pack(store: Store) -> None:
    commit(store, "b", ids(2), curve=True)
    commit(store, "a", ids(0, 1), curve=True, version="2")
    runs = store.runs(*AT)
    expected = ["trial", "pack", "cells", "version", "libraries_scikit_learn", "libraries_torch", "seeds", "wall_s"]
    assert list(runs.columns) == expected
    assert runs.to_numpy().tolist() == [
        ["train", "a", 2, "2", "1.5", "2.0", "[1, 2]", 0.25],
        ["train", "b", 1, "1", "1.5", "2.0", "[1, 2]", 0.25],
    ]


# Bad files


@pytest.mark.parametrize("keep", [0, 4, 11, 0.5, -100, -1])
def test_a_truncated_part_is_named_and_replaced(store: Store, keep: float) -> None:
    commit(store, "good", ids(0))
    commit(store, "bad", ids(1))
    path = path_of(store, "bad")
    data = get(store, path)
    put(store, path, data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    (problem,) = store.problems(*AT)
    assert str(problem).startswith(f"{path}: truncated, or not a Parquet file")
    assert stored(store) == set(ids(0))
    with pytest.raises(AssayError) as caught:
        read(store)
    assert str(caught.value) == f"{problem}: move it away, or run the study again to replace it"
    commit(store, "bad", ids(1))
    assert read(store)["cell"].to_pylist() == ids(0, 1)


def foreign_parts() -> dict[str, Callable[[Store], bytes]]:
    def bytes_of(table: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        return sink.getvalue().to_pybytes()

    return {
        "plain parquet": lambda store: bytes_of(pa.table({"cell": ["c001"]})),
        "other metadata": lambda store: bytes_of(pa.table({"cell": ["c001"]}).replace_schema_metadata({"assay": "{}"})),
        "a copy of another pack": lambda store: get(store, path_of(store, "good")),
        "text": lambda store: b"cell,loss\nc001,0.5\n",
    }


@pytest.mark.parametrize("kind", foreign_parts())
def test_a_foreign_file_is_named_and_only_what_is_no_parquet_is_set_aside(store: Store, kind: str) -> None:
    commit(store, "good", ids(0))
    path = path_of(store, "alien")
    put(store, path, foreign_parts()[kind](store))
    with pytest.raises(AssayError, match=r"main/alien\.parquet: (a foreign file|truncated, or not a Parquet file)"):
        read(store)
    assert stored(store) == set(ids(0))
    aside = [problem.path for problem in store.set_aside(*AT)]
    if kind != "text":  # it may be whole, and someone's
        assert aside == []
        assert [problem.path for problem in store.problems(*AT)] == [path]
        return
    assert aside == [path]
    assert read(store)["cell"].to_pylist() == ids(0)
    assert store.problems(*AT) == []
    assert sorted(files(store)) == sorted([path_of(store, "good"), path.replace("alien.parquet", ".alien.parquet.bad")])


def test_a_bad_part_of_the_last_table_stops_the_reading_of_the_first(folder: Store) -> None:
    commit(folder, "p", ids(0), curve=True)
    put(folder, path_of(folder, "p", "curve"), b"")
    with pytest.raises(AssayError, match=r"curve/p\.parquet: truncated"):
        read(folder)


def test_columns_come_in_the_order_asked_for(store: Store) -> None:
    commit(store, "p", ids(1, 0, 2))
    found = read(store, columns=["loss", "width"], filters=[[("width", "=", 1)], [("width", ">", 2)]])
    assert found.column_names == ["loss", "width"]
    assert found["width"].to_pylist() == [1, 4]


# Failed packs


def test_a_failure_is_kept_until_its_cells_are_stored(store: Store) -> None:
    failed = [(cell, {"width": 8, "seed": number}) for number, cell in enumerate(ids(0, 1))]
    what = {"error": "ValueError", "message": "no\nluck", "traceback": "Traceback …"}
    store.record_failure(*AT, "p", [("c009", {})], error="Old", message="", traceback="")
    store.record_failure(*AT, "p", failed, **what)
    commit(store, "q", ids(5))
    frame = store.failures(*AT)
    assert frame.to_dict("records") == [
        {"cell": "c000", "pack": "p", "factors": '{"seed": 0, "width": 8}', **what},
        {"cell": "c001", "pack": "p", "factors": '{"seed": 1, "width": 8}', **what},
    ]
    assert stored(store) == set(ids(5))
    assert list(store.runs(*AT)["pack"]) == ["q"]
    commit(store, "r", ids(1))  # another pack brings one of the cells
    assert list(store.failures(*AT)["cell"]) == ids(0)
    store.clear_failure(*AT, "p")
    store.clear_failure(*AT, "p")
    assert len(store.failures(*AT)) == 0
    assert set(stored(store)) == set(ids(1, 5))


def test_a_broken_record_of_a_failure_counts_as_none(folder: Store) -> None:
    folder.record_failure(*AT, "p", [("c000", {})], error="E", message="m", traceback="t")
    path = path_of(folder, "p", "failures")
    put(folder, path, get(folder, path)[:50])
    assert len(folder.failures(*AT)) == 0
    assert [problem.path for problem in folder.set_aside(*AT)] == [path]


# Roots


def test_object_stores_have_no_temporaries(s3: str) -> None:
    assert Store(s3.format("x")).sweep_temporaries(0) == 0


def test_a_writable_root_is_left_as_it_was(store: Store) -> None:
    store.ensure_writable()
    commit(store, "p", ids(0))
    store.ensure_writable()
    assert files(store) == [path_of(store, "p")]
    selector = pafs.FileSelector(store.folder("width", "smoke").rsplit("/", 2)[0])
    assert [info.base_name for info in store.filesystem.get_file_info(selector)] == ["width"]


def test_a_missing_bucket_is_one_clear_line_without_the_secret(s3: str) -> None:
    store = Store(s3.replace("@bucket", "@absent").format("x"))
    with pytest.raises(AssayError, match="cannot write to the results root s3://absent/x: ") as caught:
        store.ensure_writable()
    message = str(caught.value)
    assert "bucket does not exist" in message
    assert "\n" not in message
    assert "hush" not in message + repr(store) + str(store)


def test_sql_sees_the_same_rows(store: Store) -> None:
    commit(store, "a", ids(0, 1, 2), curve=True)
    commit(store, "b", ids(2, 3), curve=True)
    commit(store, "old", ids(4), version="0", curve=True)
    source = Source(store, "width", "smoke", "1", {"main": SCHEMA, "curve": CURVE})
    found = sql([source], "select cell, width, loss, spectrum from width order by cell")
    expected = read(store).to_pandas()
    pd.testing.assert_frame_equal(found.drop(columns="spectrum"), expected.drop(columns="spectrum"))
    assert [list(row) for row in found["spectrum"]] == [list(row) for row in expected["spectrum"]]
    assert sql([source], "select count(*) as n from width.curve")["n"].tolist() == [4 * STEPS]
    assert sql([source], "select pack from width.runs order by pack")["pack"].tolist() == ["a", "b", "old"]


def test_writers_of_the_same_part_do_not_disturb_each_other(store: Store) -> None:
    commit(store, "p", ids(0, 1), curve=True)
    expected = read(store)
    done = threading.Event()

    def look() -> int:
        looks = 0
        while not done.is_set():
            assert read(Store(store.root)).equals(expected)
            looks += 1
        return looks

    def write() -> None:
        for _ in range(15):
            commit(store, "p", ids(0, 1), curve=True)

    with ThreadPoolExecutor(3) as pool:
        reader = pool.submit(look)
        for writer in [pool.submit(write) for _ in range(2)]:
            writer.result()
        done.set()
        assert reader.result() > 0
    assert len(files(store)) == 2
