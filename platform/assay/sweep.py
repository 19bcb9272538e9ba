"""Packs → Ray Tune trials: resources, retries, resume. The store decides what is done; Tune only schedules.

One Tune trial measures one pack: it computes, commits its parts, then reports a receipt once. An exception of a
study's own code is recorded and ends that pack alone; a lost worker or node is retried elsewhere.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import provenance
from assay.errors import AssayError
from assay.plan import Pack, plan
from assay.progress import Progress
from assay.registry import load
from assay.results import Results
from assay.rows import schema
from assay.store import Store
from assay.study import Study

if TYPE_CHECKING:
    from ray.tune import ResultGrid

RETRIES = 3
"""How often a pack is tried again after its worker or node died."""
TEMPORARY_AGE_S = 3600.0

# Read by Ray when it is imported: no per-trial log files, no banner, no change of folder in trials; Ctrl-C is ours.
_RAY_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Sweep:
    """What one call of `run` did: packs and cells measured now, cells that failed, seconds of wall time.

    `trial_s` is the time spent inside trial code, summed over packs.
    """

    packs: int
    cells: int
    failed: int
    wall_s: float
    trial_s: float = 0.0
    workers: int = 0


def pending(results: Results, retry_failed: bool = False) -> list[Pack]:
    """Packs still to be measured. Cells that failed count as done unless they are to be tried again."""
    done = results.stored()
    if not retry_failed:
        failed = set(results.store.failures(results.study.name, results.scale)["cell"])
        done = {trial.name: done.get(trial.name, set()) | failed for trial in results.study.trials}
    return plan(results.study, results.scale, done)


def run(
    reference: str,
    scale: str,
    root: str | os.PathLike[str],
    *,
    address: str | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
) -> Sweep:
    """Measure every pack of a study that is not stored yet, on a Ray cluster or on an embedded local one.

    Returns at once, without starting Ray, when nothing is missing. AssayError for an unknown study or scale, an
    unwritable results folder, or a cluster that cannot be reached. KeyboardInterrupt passes through; all that was
    committed before it stays.
    """
    started = time.monotonic()
    study = load(reference)
    store = Store(root)
    results = Results(study, scale, store)
    if workers is not None and workers < 1:
        raise AssayError(f"--workers must be at least 1, found {workers}")
    packs = pending(results, retry_failed)
    if not packs:
        return Sweep(0, 0, 0, time.monotonic() - started)
    store.ensure_writable()
    store.sweep_temporaries(TEMPORARY_AGE_S)
    reference = str(Path(reference).resolve()) if reference.endswith(".py") else reference
    cells = sum(len(pack) for pack in packs)
    task = {"reference": reference, "root": store.root, "provenance": provenance.of_run(study)}
    with cluster(address, workers) as cpus:
        with Progress(f"{study.name} {scale}", cells, sum(pack.expected_s for pack in packs)) as progress:
            receipts = _tune(study, packs, task, progress)
        for pack in packs:  # what Tune gave up on: the worker died at every attempt
            if pack.id not in receipts:
                _record(store, study, pack, "WorkerDied", f"the worker died {RETRIES + 1} times", "")
    failed = sum(len(pack) for pack in packs if receipts.get(pack.id, {"failed": True})["failed"])
    trial_s = sum(receipt["wall_s"] for receipt in receipts.values())
    return Sweep(len(packs), cells, failed, time.monotonic() - started, trial_s, cpus)


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[int]:
    """Connect to a Ray cluster, or start an embedded one with one CPU per worker; yields its number of CPUs.

    A connection that the caller has already opened is used and left open.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in _RAY_ENVIRONMENT.items()})
    _check_reachable(address)
    import ray

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    ours = not ray.is_initialized()
    if ours:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options |= {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
        try:
            ray.init(address=address or "local", **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise AssayError(f"no Ray cluster at {address or 'local'!r}: {str(error).splitlines()[0]}") from error
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        if ours:
            ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Fail within seconds on a wrong address: Ray itself tries for half a minute and prints pages."""
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise AssayError(f"cluster address {address!r} is not 'auto', HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise AssayError(f"cluster address {address!r} cannot be reached: {error}") from error


def _tune(study: Study, packs: Sequence[Pack], task: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the packs as Tune trials; returns pack id → receipt of those that came to an end."""
    from ray import tune

    class Watch(tune.Callback):  # type: ignore[misc]
        """Counts a pack when its receipt arrives."""

        def __init__(self, progress: Progress | None = None) -> None:
            self.packs = {pack.id: pack for pack in packs} if progress else {}
            self.progress = progress
            self.receipts: dict[str, Any] = {}

        def __reduce__(self) -> tuple[type, tuple]:  # Tune pickles its callbacks; a bar cannot be pickled
            return tune.Callback, ()

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            self.count(result)

        def count(self, receipt: Mapping[str, Any]) -> None:
            if receipt.get("pack") in self.packs and receipt["pack"] not in self.receipts:
                pack = self.packs[receipt["pack"]]
                self.receipts[pack.id] = {key: receipt[key] for key in ("failed", "wall_s")}
                if self.progress:
                    self.progress.advance(len(pack), pack.expected_s, receipt["failed"])

    watch = Watch(progress)

    def entry(pack: Pack) -> dict[str, Any]:
        return {"pack": pack.config(), "gpus": study.trial(pack.trial).gpus.get(pack.scale, 0.0)}

    scratch = tempfile.mkdtemp(prefix="assay-")
    try:
        grid: ResultGrid = tune.Tuner(
            tune.with_resources(measure, _resources),
            param_space={"task": dict(task), "job": tune.grid_search([entry(pack) for pack in packs])},
            tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                callbacks=[watch],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        ).fit()
        for result in grid:
            watch.count(result.metrics or {})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return watch.receipts


def _resources(config: Mapping[str, Any]) -> dict[str, float]:
    """One CPU per pack, and the share of a GPU its trial asks for."""
    return {"cpu": 1, "gpu": config["job"]["gpus"]} if config["job"]["gpus"] else {"cpu": 1}


def measure(config: Mapping[str, Any]) -> None:
    """One Tune trial: measure a pack, commit it, report its receipt."""
    import torch
    from ray import tune

    torch.set_num_threads(1)  # one worker per core; Ray sets OMP_NUM_THREADS, which torch does not always follow
    task, job = config["task"], config["job"]
    study = load(task["reference"])
    pack = Pack.from_config(job["pack"])
    if job["gpus"] and torch.cuda.is_available():
        pack = replace(pack, device="cuda")
    failed, wall_s = run_and_commit(study, pack, Store(task["root"]), task["provenance"])
    tune.report({"pack": pack.id, "failed": failed, "wall_s": wall_s})


def run_and_commit(study: Study, pack: Pack, store: Store, origin: Mapping[str, Any]) -> tuple[bool, float]:
    """Measure a pack in this process and commit its parts, or the failure; returns (failed, seconds of trial code).

    An exception of the study's code is recorded with its traceback. One of the store is raised: it is the
    infrastructure's, and worth another try.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        frames = study.run_pack(pack)
    except Exception as error:
        _record(store, study, pack, type(error).__name__, str(error), traceback.format_exc())
        return True, time.perf_counter() - wall
    wall_s = time.perf_counter() - wall
    trial = study.trial(pack.trial)
    seeds = sorted({str(value) for cell in pack.cells for key, value in cell.factors.items() if "seed" in key})
    store.commit(
        study.name,
        pack.scale,
        pack.id,
        {table.name: (schema(trial, table), frames[table.name]) for table in trial.tables},
        version=study.version,
        trial=pack.trial,
        cells=[cell.id for cell in pack.cells],
        provenance={
            **origin,
            "device": provenance.device_name(pack.device),
            "seeds": seeds,
            "wall_s": wall_s,
            "cpu_s": time.process_time() - cpu,
        },
    )
    store.clear_failure(study.name, pack.scale, pack.id)
    return False, wall_s


def _record(store: Store, study: Study, pack: Pack, error: str, message: str, trace: str) -> None:
    store.record_failure(
        study.name,
        pack.scale,
        pack.id,
        [(cell.id, dict(cell.factors)) for cell in pack.cells],
        error=error,
        message=message,
        traceback=trace,
    )
