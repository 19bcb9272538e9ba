"""Packs → Ray Tune trials: resources, retries, resume. The store decides what is done; Tune only schedules.

One Tune trial measures one pack: it computes, commits its parts, then reports a receipt once. An exception of a
study's own code is recorded and ends that pack alone; a lost worker or node is retried elsewhere. A pack that needs
several processes gets them from its trial (`assay.train`).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import provenance, train
from assay.errors import AssayError
from assay.plan import Pack, plan
from assay.progress import Progress
from assay.registry import load
from assay.results import Results
from assay.rows import schema
from assay.store import Store
from assay.study import Study

if TYPE_CHECKING:
    import pandas as pd
    from ray import tune

RETRIES = 3
"""How often a pack is tried again after its worker or node died."""
REACHED_S = 20
"""How long a cluster may take to answer at all."""
TEMPORARY_AGE_S = 3600.0
"""Age at which a writer's temporary file is certainly a killed one's."""

# Read by Ray when it is imported. A value that the user has set stays.
_RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # no banner of Tune's
    "RAY_SCHEDULER_EVENTS": "0",  # no messages of the autoscaler
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # nor any other process's: a dead worker is retried, or recorded as a failure
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning about packs that ask for no GPU
    "RAY_USAGE_STATS_ENABLED": "0",  # an embedded cluster sends nothing anywhere
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # trials keep the driver's folder
    "PL_DISABLE_FORK": "1",  # what Tune gives its trials: see `_environment_shared`
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no files per trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # no snapshots of Tune's state: nothing reads them
}


@dataclass(frozen=True)
class Sweep:
    """What one call of `run` did: packs and cells tried now, cells of them that failed, seconds of wall time.

    `trial_s` is the time spent inside trial code, summed over packs; `workers` the CPUs of the cluster. `set_aside`
    names files that were no readable parts and were moved out of the way.
    """

    packs: int
    cells: int
    failed: int
    wall_s: float
    trial_s: float = 0.0
    workers: int = 0
    set_aside: tuple[str, ...] = ()


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
    unwritable results folder, a cluster that cannot be reached, or an embedded one without the GPUs that the scale
    asks for. KeyboardInterrupt passes through; all that was committed before it stays.
    """
    started = time.monotonic()
    study = load(reference)
    store = Store(root)
    results = Results(study, scale, store)
    if workers is not None and workers < 1:
        raise AssayError(f"workers must be at least 1, found {workers}")
    packs = pending(results, retry_failed)
    if packs:  # all that can be wrong is found out before anything stored is touched
        _check_reachable(address)
        store.ensure_writable()
    aside = tuple(str(problem) for problem in store.set_aside(study.name, scale))
    if not packs:
        train.clear(store, study.name, scale)
        return Sweep(0, 0, 0, time.monotonic() - started, set_aside=aside)
    store.sweep_temporaries(TEMPORARY_AGE_S)
    reference = str(Path(reference).resolve()) if reference.endswith(".py") else reference
    cells = sum(len(pack) for pack in packs)
    task = {"reference": reference, "root": store.root, "provenance": provenance.of_run(study)}
    with Progress(f"{study.name} {scale}", cells, sum(pack.expected_s for pack in packs)) as progress:
        gpus = max(_gpus(study, pack) * _workers(study, pack) for pack in packs)
        team = max(_workers(study, pack) for pack in packs)
        with cluster(address, workers, gpus, team) as cpus:
            progress.begin()
            outcomes: dict[str, Any] = {}
            for count in sorted({_workers(study, pack) for pack in packs}):
                some = [pack for pack in packs if _workers(study, pack) == count]
                # A team waits for all its processes at once, and would wait for ever beside a stream of single packs.
                most = workers if count == 1 else max(1, cpus // count)
                outcomes |= _tune(study, some, task, most, progress)
        for pack in packs:
            if isinstance(outcomes[pack.id], BaseException):  # what Tune gave up on
                _record_lost(store, pack, outcomes[pack.id])
    receipts = {pack: outcome for pack, outcome in outcomes.items() if not isinstance(outcome, BaseException)}
    failed = sum(len(pack) for pack in packs if pack.id not in receipts or receipts[pack.id]["failed"])
    trial_s = sum(receipt["wall_s"] for receipt in receipts.values())
    return Sweep(len(packs), cells, failed, time.monotonic() - started, trial_s, cpus, aside)


@contextmanager
def cluster(address: str | None, workers: int | None, gpus: float = 0.0, team: int = 1) -> Iterator[int]:
    """Connect to a Ray cluster, or start an embedded one with one CPU per worker; yields its number of CPUs.

    A connection that the caller has already opened is used and left open. AssayError if there is no such cluster, or
    if it has fewer `gpus`, or fewer CPUs than a `team`, than a pack needs: there, it would wait for ever.
    """
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with ExitStack() as opened:
        if not ray.is_initialized():
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if address is None:
                options |= {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
                opened.enter_context(_environment_shared())
            try:
                ray.init(address=address or "local", **options)
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                what = f"no Ray cluster at {address!r}" if address else "Ray cannot be started here"
                raise AssayError(f"{what}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
            opened.callback(ray.shutdown)
        resources = ray.cluster_resources()
        if address is None and resources.get("GPU", 0) < gpus:
            raise AssayError(
                f"a pack asks for {gpus:g} GPU, this machine has none: choose another --scale or an --address"
            )
        if resources.get("CPU", 1) < team:
            raise AssayError(
                f"a pack asks for {team} processes, there are {resources.get('CPU', 1):g} CPUs: add --workers"
            )
        yield int(resources.get("CPU", 1))


@contextmanager
def _environment_shared() -> Iterator[None]:
    """Let trials run in the processes that an embedded cluster has ready.

    Tune gives its actors environment variables of their own, and for those Ray starts two interpreters after another.
    All processes of an embedded cluster inherit the environment that the driver has when it starts them, so there is
    nothing to give. What the driver sets later does not reach them.
    """
    from ray.tune.execution import class_cache

    names = vars(class_cache)
    given = {name: names[name] for name in ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE")}
    names.update(DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=frozenset())
    try:
        yield
    finally:
        names.update(given)


def _check_reachable(address: str | None) -> None:
    """Fail within seconds on a wrong address: Ray itself tries for minutes, prints pages and may end the process."""
    if address is None:
        return
    if address != "auto" and not re.fullmatch(r"[\w.:-]+:\d{1,5}", str(address)):
        raise AssayError(f"cluster address {address!r} is neither 'auto' nor HOST:PORT")
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", str(address)]
    try:
        if address != "auto":
            host, _, port = str(address).rpartition(":")
            socket.create_connection((host, int(port)), timeout=REACHED_S).close()
        subprocess.run(command, capture_output=True, text=True, timeout=REACHED_S, check=True)
    except subprocess.TimeoutExpired:
        raise AssayError(f"cluster address {address!r}: no Ray cluster answers there within {REACHED_S} s") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:] or [f"exit status {error.returncode}"]
        raise AssayError(f"cluster address {address!r}: {reason[0]}") from error
    except (OSError, OverflowError) as error:
        raise AssayError(f"cluster address {address!r} cannot be reached: {error}") from error


def _gpus(study: Study, pack: Pack) -> float:
    return study.trial(pack.trial).gpus.get(pack.scale, 0.0)


def _workers(study: Study, pack: Pack) -> int:
    return study.trial(pack.trial).workers.get(pack.scale, 1)


def _tune(
    study: Study, packs: Sequence[Pack], task: Mapping[str, Any], workers: int | None, progress: Progress
) -> dict[str, Any]:
    """Run the packs as Tune trials; returns pack id → the receipt it reported, or the error it was given up for."""
    from ray import tune

    def job(pack: Pack) -> dict[str, Any]:  # as text: Tune copies, flattens and pickles what a trial is given
        team = _workers(study, pack)
        return {"id": pack.id, "pack": json.dumps(pack.config()), "gpus": _gpus(study, pack), "workers": team}

    scratch = tempfile.mkdtemp(prefix="assay-")
    try:
        grid = tune.Tuner(
            tune.with_resources(measure, _resources),
            param_space={"task": dict(task), "job": tune.grid_search([job(pack) for pack in packs])},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=workers,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,  # only the driver writes there
                verbose=0,
                callbacks=[_watch(packs, progress)],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    outcomes = {}
    for index in range(len(grid)):
        result = grid[index]
        assert result.config is not None, "Tune keeps the config of every trial, failed or not"
        outcomes[result.config["job"]["id"]] = result.error or result.metrics
    return outcomes


def _watch(packs: Sequence[Pack], progress: Progress) -> tune.Callback:
    """Callback that counts a pack when its receipt arrives, or when Tune gives it up."""
    from ray import tune

    waiting = {pack.id: pack for pack in packs}

    class Watch(tune.Callback):
        def __reduce__(self) -> tuple[type, tuple]:  # Tune keeps a pickled copy, and a bar cannot be pickled
            return tune.Callback, ()

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            self.count(trial, result["failed"])

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.count(trial, failed=True)

        def count(self, trial: Any, failed: bool) -> None:
            pack = waiting.pop(trial.config["job"]["id"], None)
            if pack:  # a pack whose worker died after it had reported runs, and reports, twice
                progress.advance(len(pack), pack.expected_s, failed)

    return Watch()


def _resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """One CPU per pack, and the share of a GPU its trial asks for; next to nothing for one whose team has its own."""
    from ray import tune

    job = config["job"]
    return tune.PlacementGroupFactory([{"memory": 1.0} if job["workers"] > 1 else {"CPU": 1.0, "GPU": job["gpus"]}])


def measure(config: Mapping[str, Any]) -> None:
    """One Tune trial: measure a pack, commit it, report its receipt."""
    from ray import tune

    if not gc.get_freeze_count():  # once per process: else its further imports wait for collections of all of Ray
        gc.freeze()
    # One worker per core, whatever the user's environment says: read by torch when a study imports it.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    task, job = config["task"], config["job"]
    pack, store = Pack.from_config(json.loads(job["pack"])), Store(task["root"])
    try:
        study = load(task["reference"])
    except AssayError as error:  # the same on every try: this node's code is not the driver's
        record(store, pack, error)
        tune.report({"failed": True, "wall_s": 0.0})
        return
    if job["workers"] > 1:
        tune.report(train.run(pack, job["workers"], job["gpus"], store, task))
        return
    if job["gpus"]:
        pack = replace(pack, device="cuda")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    single = train.Single(store, pack)
    failed, wall_s = run_and_commit(study, replace(pack, team=single), store, task["provenance"])
    single.forget()
    tune.report({"failed": failed, "wall_s": wall_s})


def run_and_commit(study: Study, pack: Pack, store: Store, origin: Mapping[str, Any]) -> tuple[bool, float]:
    """Measure a pack in this process and commit its parts, or the failure; returns (failed, seconds of trial code).

    An exception of the study's code, and rows that do not fit its tables, are recorded with the traceback. An error of
    the file system is raised: it is the infrastructure's, and worth another try.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        frames = study.run_pack(pack)
    except (Exception, SystemExit) as error:
        record(store, pack, error)
        return True, time.perf_counter() - wall
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return commit(study, pack, store, frames, {**origin, "wall_s": wall_s, "cpu_s": cpu_s}), wall_s


def commit(
    study: Study, pack: Pack, store: Store, frames: Mapping[str, pd.DataFrame], origin: Mapping[str, Any]
) -> bool:
    """Commit the rows of a pack, or record why they do not fit its tables; returns whether it failed."""
    trial = study.trial(pack.trial)
    seeds = {str(value) for cell in pack.cells for key, value in cell.factors.items() if "seed" in key}
    try:
        store.commit(
            study.name,
            pack.scale,
            pack.id,
            {table.name: (schema(trial, table), frames[table.name]) for table in trial.tables},
            version=study.version,
            trial=pack.trial,
            cells=[cell.id for cell in pack.cells],
            provenance={**origin, "device": provenance.device_name(pack.device), "seeds": sorted(seeds)},
        )
    except AssayError as error:
        record(store, pack, error)
        return True
    store.clear_failure(study.name, pack.scale, pack.id)
    return False


def record(store: Store, pack: Pack, error: BaseException) -> None:
    """Store that a pack failed in its own code."""
    _record_failure(store, pack, type(error).__name__, str(error), "".join(traceback.format_exception(error)))


def _record_lost(store: Store, pack: Pack, error: BaseException) -> None:
    """Store that a pack was given up: its worker died, or its rows could not be stored, at every try."""
    from ray.exceptions import RayActorError

    cause = getattr(error, "cause", None) or error
    name = "WorkerDied" if isinstance(cause, RayActorError) else type(cause).__name__
    what = "its worker process died" if isinstance(cause, RayActorError) else str(cause)
    _record_failure(store, pack, name, f"{what} (tried {RETRIES + 1} times)", str(error))


def _record_failure(store: Store, pack: Pack, error: str, message: str, trace: str) -> None:
    cells = [(cell.id, dict(cell.factors)) for cell in pack.cells]
    store.record_failure(pack.study, pack.scale, pack.id, cells, error=error, message=message, traceback=trace)
