"""Sweeps through Ray: what is measured, what survives which death, and what the user gets to see of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from assay import AssayError, registry, sweep
from assay.plan import plan
from assay.results import Results
from assay.store import Store
from assay.study import Study

pytestmark = pytest.mark.ray

COMMAND = [sys.executable, "-c", "from assay.cli import main; main()"]
GRACE_S = 60.0  # until an event that must come: generous, because the machine may be busy
AGENT = re.compile(r"ray::\w*Agent|agent/main\.py|dashboard/agent\.py")
LINE = re.compile(r"faulty smoke: \d+/24 cells(, \d+\.\d cells/s)?(, (took|\d).*)?, \d+ failed")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[str]:
    """One cluster for all sweeps in this process; yields its address."""
    with sweep.cluster(None, 2) as cpus:
        import ray

        assert cpus == 2
        yield ray.get_runtime_context().gcs_address


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The faulty study, in a folder of its own; its results belong into `results` there."""
    return Path(shutil.copy(Path(__file__).with_name("faulty_study.py"), tmp_path))


def misbehave(path: Path, **faults: Any) -> None:
    """Faults by cell (`n3="raise"`), seconds that a pack takes, the process that may import the study."""
    named = {
        key.removeprefix("n") if key[1:].isdigit() else key.replace("_", " "): fault for key, fault in faults.items()
    }
    path.with_name("faults.json").write_text(json.dumps(named))


def notes(path: Path) -> list[dict[str, Any]]:
    file = path.with_name("executions")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def executed(path: Path) -> Counter[int]:
    """How often the pack of each n was begun."""
    return Counter(note["n"] for note in notes(path) if note["n"] > 0)


def opened(path: Path) -> Results:
    return Results(registry.load(str(path)), "smoke", Store(path.with_name("results")))


def run_here(path: Path, **options: Any) -> sweep.Sweep:
    return sweep.run(str(path), "smoke", path.with_name("results"), **options)


def truth(study: Study, *leave_out: int) -> dict[str, pd.DataFrame]:
    """The tables as packs in this process make them."""
    frames = [study.run_pack(pack) for pack in plan(study, "smoke") if pack["n"] not in leave_out]
    whole = {table.name: pd.concat([frame[table.name] for frame in frames]) for table in study.tables}
    return {name: frame.sort_values("cell", kind="stable", ignore_index=True) for name, frame in whole.items()}


def assert_measured(path: Path, *leave_out: int) -> None:
    """The stored tables are the true ones, with every row once."""
    results = opened(path)
    kept = notes(path)
    for name, frame in truth(results.study, *leave_out).items():
        pd.testing.assert_frame_equal(results.tables[name], frame)
    path.with_name("executions").write_text("".join(json.dumps(note) + "\n" for note in kept))


def visible(path: Path) -> list[Path]:
    """Files that a reader of the results folder sees."""
    return [file for file in path.with_name("results").rglob("*") if file.is_file() and not file.name.startswith(".")]


def living(tag: str) -> list[str]:
    """Command lines of the processes that descend from a command started with that tag."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"ASSAY_TEST_TAG={tag}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def wait_for(event: Any, what: str) -> None:
    deadline = time.monotonic() + GRACE_S
    while not event():
        assert time.monotonic() < deadline, f"waited {GRACE_S} s for {what}"
        time.sleep(0.02)


def start(path: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start `assay run` as a user does: in a process group of its own, in the study's folder."""
    environment = os.environ | {"ASSAY_TEST_TAG": str(path), "RAY_AUTH_MODE": "token"}
    return subprocess.Popen(
        [*COMMAND, "run", path.name, "--out", "site", *arguments],
        cwd=path.parent,
        env=environment,
        start_new_session=True,
        text=True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
    )


@pytest.mark.usefixtures("ray_here")
def test_a_sweep_measures_what_packs_in_this_process_do(path: Path) -> None:
    done = run_here(path)
    assert (done.packs, done.cells, done.failed, done.workers) == (8, 24, 0, 2)
    assert 0 < done.trial_s < done.wall_s
    assert executed(path) == dict.fromkeys(range(1, 9), 1)
    assert_measured(path)
    runs = opened(path).store.runs("faulty", "smoke")
    assert sorted(runs["pack"]) == sorted(pack.id for pack in plan(opened(path).study, "smoke"))
    assert (runs["cells"] == 3).all()
    assert (runs["seeds"] == '["0", "1", "2"]').all()
    again = run_here(path)
    assert (again.packs, again.cells, again.failed) == (0, 0, 0)
    assert sum(executed(path).values()) == 8


@pytest.mark.usefixtures("ray_here")
def test_one_worker_takes_one_pack_at_a_time(path: Path) -> None:
    misbehave(path, seconds=0.05)
    assert run_here(path, workers=1).failed == 0
    spans = sorted((note["started"], note["ended"]) for note in notes(path) if note["n"] < 0)
    assert len(spans) == 8
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@pytest.mark.usefixtures("ray_here")
def test_packs_run_in_processes_that_were_ready(path: Path) -> None:
    import ray

    @ray.remote(num_cpus=1)
    def sleep() -> None:
        time.sleep(0.5)

    ray.get([sleep.remote(), sleep.remote()])  # leaves two processes behind, whatever ran before
    ready = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    assert run_here(path).failed == 0
    assert set() < {note["pid"] for note in notes(path) if "pid" in note} <= ready


def test_failures_are_recorded_once_and_stop_nothing_else(path: Path, ray_here: str, tell: Callable[..., Any]) -> None:
    misbehave(path, n1="raise", n2="exit", n3="wrong rows", n4="die", n5="die once")
    driver = start(path, "--address", ray_here)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 1, err
    tries = sweep.RETRIES + 1
    assert executed(path) == {1: 1, 2: 1, 3: 1, 4: tries, 5: 2, 6: 1, 7: 1, 8: 1}
    assert_measured(path, 1, 2, 3, 4)

    # nothing of Ray's reaches the terminal
    *lines, measured, failed = err.splitlines()
    assert lines
    assert all(LINE.fullmatch(line) for line in lines), err
    assert lines[-1].endswith("12 failed")
    assert re.fullmatch(r"measured 12 cells in 8 packs, .*", measured)
    assert re.fullmatch(
        r"12 of 24 cells failed, the first with \w+: .*; tracebacks: assay query .* --retry-failed", failed
    )
    assert set(re.findall(r"^\S+ ", out, flags=re.MULTILINE)) <= {"A ", "│ ", "┃ ", "report: "}, out

    failures = opened(path).store.failures("faulty", "smoke")
    by_n = {json.loads(row.factors)["n"]: row for row in failures.itertuples()}
    assert Counter(json.loads(factors)["n"] for factors in failures["factors"]) == {1: 3, 2: 3, 3: 3, 4: 3}
    assert [by_n[n].error for n in (1, 2, 3, 4)] == ["ValueError", "SystemExit", "AssayError", "WorkerDied"]
    assert by_n[1].message == "there is no root of 1\nand never was"
    assert "in measure" in by_n[1].traceback
    assert by_n[3].message == "table 'curves', column 'step': expected int64, found double"
    assert by_n[4].message == f"its worker process died (tried {tries} times)"

    # a plain second run does not try them again, and still says so
    before = executed(path)
    again = ["run", path, "--results", path.with_name("results"), "--out", path.with_name("site")]
    status, _, said = tell(*again)
    assert status == 1
    assert executed(path) == before
    assert said.startswith("nothing to measure")
    assert "12 of 24 cells failed" in said

    # told to, it tries them and nothing else; what succeeds then is forgotten as a failure
    misbehave(path, n2="raise")
    status, _, said = tell(*again, "--retry-failed")
    assert status == 1
    assert "3 of 24 cells failed" in said
    assert executed(path) - before == {1: 1, 2: 1, 3: 1, 4: 1}
    misbehave(path)
    status, _, said = tell(*again, "--retry-failed")
    assert status == 0
    assert "failed, the first" not in said
    assert_measured(path)
    assert len(opened(path).store.failures("faulty", "smoke")) == 0


@pytest.mark.usefixtures("ray_here")
def test_an_error_of_the_store_is_tried_again_and_then_recorded(path: Path) -> None:
    misbehave(path, n7="no room")
    assert run_here(path).failed == 3
    tries = sweep.RETRIES + 1
    assert executed(path) == dict.fromkeys(range(1, 9), 1) | {7: tries}
    failures = opened(path).store.failures("faulty", "smoke")
    assert set(failures["error"]) == {"IsADirectoryError"}
    assert failures["message"].str.endswith(f"(tried {tries} times)").all()
    assert_measured(path, 7)


@pytest.mark.usefixtures("ray_here")
def test_a_study_that_workers_cannot_import_fails_without_retries(path: Path) -> None:
    misbehave(path, importable_by=os.getpid())
    assert run_here(path).failed == 24
    assert not executed(path)
    failures = opened(path).store.failures("faulty", "smoke")
    assert set(failures["message"]) == {
        "faulty_study.py cannot be imported: ImportError: there is no such library on this node"
    }


@pytest.mark.usefixtures("ray_here")
def test_a_gpu_that_is_not_there_is_bad_input(path: Path) -> None:
    with pytest.raises(AssayError, match="a pack asks for 1 GPU, this machine has none: choose another --scale"):
        sweep.run(str(path), "cluster", path.with_name("results"))
    assert not visible(path)


class Reader(threading.Thread):
    """Reads every visible part again and again, as an analyst's notebook might in mid-sweep."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.done, self.reads, self.errors = path, threading.Event(), 0, []

    def run(self) -> None:
        while not self.done.is_set():
            for part in visible(self.path):
                try:
                    assert part.suffix == ".parquet"
                    assert pq.read_table(part).num_rows in (3, 6)
                    self.reads += 1
                except Exception as error:
                    self.errors.append(f"{part.name}: {error!r}")
            time.sleep(0.005)


def test_killed_in_mid_sweep_it_goes_on_with_what_is_missing(path: Path, request: pytest.FixtureRequest) -> None:
    misbehave(path, seconds=0.3)
    reader = Reader(path)
    reader.start()
    try:
        driver = start(path)
        wait_for(lambda: visible(path), "the first part")
        os.kill(driver.pid, signal.SIGKILL)
        out, err = driver.communicate(timeout=GRACE_S)
        assert driver.returncode == -signal.SIGKILL
        assert out == ""
        assert all(LINE.fullmatch(line) for line in err.splitlines()), err
        # Ray's two agents of a node outlive a killed one by a minute; they measure and write nothing
        wait_for(lambda: not [name for name in living(str(path)) if not AGENT.search(name)], "the end of the workers")

        stored = {part.stem for part in visible(path) if part.parent.name == "curves"}  # the last table of a pack
        missing = [pack["n"] for pack in plan(opened(path).study, "smoke") if pack.id not in stored]
        assert 0 < len(missing) < 8
        before = executed(path)
        request.getfixturevalue("ray_here")
        assert run_here(path).cells == 3 * len(missing)
        assert executed(path) - before == dict.fromkeys(missing, 1)
    finally:
        reader.done.set()
        reader.join()
    assert_measured(path)
    assert reader.errors == []
    assert reader.reads > 0


def test_ctrl_c_ends_at_once_and_says_how_to_go_on(path: Path) -> None:
    misbehave(path, seconds=0.5)
    screen, terminal = pty.openpty()
    driver = start(path, "--workers", "1", stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=take_terminal)
    os.close(terminal)
    seen: list[str] = []
    watcher = threading.Thread(target=read_all, args=(screen, seen))
    watcher.start()
    wait_for(lambda: " 3/24 cells" in "".join(seen), "the first pack on the bar")
    os.write(screen, b"\x03")  # what a terminal sends; its driver interrupts the whole group
    pressed = time.monotonic()
    assert driver.wait(timeout=GRACE_S) == 130
    assert time.monotonic() - pressed < 5
    wait_for(lambda: not living(str(path)), "the end of the driver's processes")
    watcher.join()
    os.close(screen)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(seen)).replace("\r", "\n")

    # the bar: at once, then with cells, rate, time left and failures
    assert "starting Ray" in shown
    assert re.search(r"faulty smoke [━╸╺]+ 0/24 cells, 0 failed", shown)
    assert re.search(r"faulty smoke [━╸╺]+ 3/24 cells, \d+\.\d cells/s, .* left, 0 failed", shown.replace("\n", " ")), (
        shown
    )
    last = " ".join(shown.split("interrupted; ")[1].split())
    assert last == "what was measured is stored. Go on with: assay run faulty_study.py --out site --workers 1"
    other = [line for line in shown.splitlines() if line.strip(" ^C") and "smoke" not in line and "cells" not in line]
    assert len(other) <= 3, shown  # the sentence, broken over lines
    assert len(executed(path)) < 8


def take_terminal() -> None:
    """Make standard input the controlling terminal of this new session, and hear Ctrl-C even if the tests do not."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored by what a shell has put in the background
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_all(screen: int, seen: list[str]) -> None:
    with contextlib.suppress(OSError):  # the other side is closed
        while chunk := os.read(screen, 65536):
            seen.append(chunk.decode(errors="replace"))


def test_a_finished_study_answers_without_ray(path: Path) -> None:
    study = registry.load(str(path))
    for pack in plan(study, "smoke"):
        sweep.run_and_commit(study, pack, Store(path.with_name("results")), {})
    code = (
        "import sys; from assay.cli import main\n"
        "try: main()\n"
        "finally: assert 'ray' not in sys.modules and 'torch' not in sys.modules, sorted(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", path.name, "--out", "site"],
        cwd=path.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "nothing to measure: every cell is stored, or failed before\n"
    assert "F-1" in done.stdout
