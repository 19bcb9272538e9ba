"""Files that appear whole or not at all, whoever is killed; roots that cannot be used, in one line."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from assay.errors import AssayError
from assay.files import publish, sweep_temporaries
from assay.store import Store

LOCAL = pafs.LocalFileSystem()


def test_publishing_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "part"
    for content in (b"old and longer", b"new"):
        publish(LOCAL, str(path), content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "part"
    publish(LOCAL, str(path), b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish(LOCAL, str(path), b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_and_after_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, os.replace

    def watch_sync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("sync temporary" if name.endswith(".tmp") else f"sync {name}")
        sync(descriptor)

    def watch_replace(source: str, target: str) -> None:
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watch_sync)
    monkeypatch.setattr(os, "replace", watch_replace)
    publish(LOCAL, str(tmp_path / "new" / "folder" / "part"), b"")
    assert events == [f"sync {tmp_path.name}", "sync new", "sync temporary", "replace", "sync folder"]


def test_temporaries_are_swept_by_age(tmp_path: Path) -> None:
    home = tmp_path / "width" / "smoke" / "main"
    old, new = (home / f".p.parquet.{digit * 32}.tmp" for digit in "01")
    home.mkdir(parents=True)
    for path in (old, new, home / ".mine.tmp", home / "p.parquet"):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - 7200,) * 2)
    os.utime(new)
    assert sweep_temporaries(str(tmp_path), 3600) == 1
    assert {path.name for path in home.iterdir()} == {"p.parquet", new.name, ".mine.tmp"}


# Roots


@pytest.fixture
def read_only() -> Iterator[Path]:
    """Lock a folder; whoever could write anyway (root) acts as nobody inside."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield path
    if root:
        os.seteuid(0)
    shutil.rmtree(path)


def test_a_read_only_folder_is_one_clear_line(read_only: Path) -> None:
    for root in (read_only, read_only / "results"):
        with pytest.raises(AssayError) as caught:
            Store(root).ensure_writable()
        assert str(caught.value) == (
            f"cannot write to the results root {root}: Permission denied; choose another with --results"
        )


def test_a_file_is_no_results_folder(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("mine")
    with pytest.raises(AssayError, match=f"cannot write to the results root {root}: Not a directory"):
        Store(root).ensure_writable()
    assert root.read_text() == "mine"


@pytest.mark.parametrize("root", ["ftp://host/x", "s3://", "nowhere://x", "s3://bucket/x?endpont_override=1"])
def test_a_root_that_is_no_folder_or_object_store(root: str) -> None:
    with pytest.raises(AssayError, match=f"^results root '{root.split('?')[0]}': "):
        Store(root)


@pytest.mark.parametrize("name", ["../p", ".p", "_p", "a/b", ""])
def test_names_stay_inside_the_root(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    for names in ((name, "smoke", "main"), ("width", name, "main"), ("width", "smoke", name)):
        with pytest.raises(AssayError, match=f"{name!r} cannot name a file"):
            store.folder(*names)


def test_a_root_may_be_relative_or_a_file_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stores = [
        Store("results"),
        Store(f"file://{tmp_path}/results/"),
        Store(Path("results")),
        Store(tmp_path / "results"),
    ]
    monkeypatch.chdir("/")
    for store in stores:
        again = pickle.loads(pickle.dumps(store))
        assert again.folder("width", "smoke") == store.folder("width", "smoke") == f"{tmp_path}/results/width/smoke"


# Writers that die

WRITERS = """
import os, signal, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from assay.part import Stamp, encode
from assay.store import Store
how, root = sys.argv[1:]
store = Store(root)
schema = pa.schema([("cell", pa.string()), *((f"x{i}", pa.float64()) for i in range(4))])
rows = {"cell": ["c"] * 20_000, **{f"x{i}": np.random.default_rng(i).random(20_000) for i in range(4)}}
stamps = {pack: Stamp("width", "smoke", "main", "1", "t", pack, ("c",), ("main",), {}) for pack in "ab"}
tables = {pack: pq.read_table(pa.BufferReader(encode(stamps[pack], schema, rows))) for pack in "ab"}
def write(pack):
    if how == "whole":
        parts = {"main": (schema, rows)}
        store.commit("width", "smoke", pack, parts, version="1", trial="t", cells=["c"], provenance={})
    else:
        pq.write_table(tables[pack], f"{root}/width/smoke/main/{pack}.parquet")
def work(packs):
    pid = os.fork()
    while not pid:
        for pack in packs:
            write(pack)
    return pid
for _ in sys.stdin:
    pids = [work("ab"), work("ba")]
    print("at work", flush=True)
    sys.stdin.readline()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print("dead", flush=True)
"""


def unreadable_while_writers_die(how: str, root: Path, rounds: int) -> int:
    """Count what a reader finds broken while pairs of writers of the same parts are killed at random moments."""
    store = Store(root)
    home = Path(store.folder("width", "smoke", "main"))
    home.mkdir(parents=True)
    broken = whole = 0
    rng = random.Random(0)

    def look() -> None:
        nonlocal broken, whole
        parts, problems = store.parts("width", "smoke", "main")
        broken += len(problems)
        for part in parts:
            try:
                whole += pq.read_table(part.path, columns=["cell", "x3"]).num_rows == 20_000
            except (pa.ArrowException, OSError):
                broken += 1

    command = [sys.executable, "-c", WRITERS, how, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writers:
        assert writers.stdin is not None
        assert writers.stdout is not None
        for _ in range(rounds):
            for answer in ("at work\n", "dead\n"):
                print("next", file=writers.stdin, flush=True)
                assert writers.stdout.readline() == answer
                end = time.monotonic() + rng.uniform(0.02, 0.2)
                while answer == "at work\n" and time.monotonic() < end:
                    look()
            look()
    assert broken + whole > rounds
    assert {path.name for path in home.glob("[!.]*")} == {"a.parquet", "b.parquet"}
    return broken


def test_killed_writers_never_leave_half_a_part(tmp_path: Path) -> None:
    assert unreadable_while_writers_die("whole", tmp_path, rounds=12) == 0
    sweep_temporaries(str(tmp_path), 0)
    assert len(list((tmp_path / "width" / "smoke" / "main").iterdir())) == 2


def test_the_kill_test_catches_a_writer_that_writes_in_place(tmp_path: Path) -> None:
    assert unreadable_while_writers_die("in place", tmp_path, rounds=3) > 0
