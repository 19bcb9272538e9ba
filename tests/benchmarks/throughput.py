"""Cells per second end to end: packs through Assay against one cell per Ray Tune trial, and against a process pool."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import throughput_study as cells

STUDY = Path(__file__).with_name("throughput_study.py")
FRESH, REUSED, POOLED = (4, 12), (100, 500), (100, 500)
"""Cells that a slow peer runs, few and many: the difference gives its time per cell, the rest what it costs to start."""


def one_cell(config: dict) -> None:
    """One Tune trial, one network."""
    import torch
    from ray import tune

    torch.set_num_threads(1)
    tune.report({"loss": cells.train_eager(config["seed"])})


def through_assay(workers: int) -> float:
    """Seconds of the whole sweep, on a Ray that is up and has run nothing yet."""
    from assay import sweep

    with tempfile.TemporaryDirectory() as root, sweep.cluster(None, workers):
        done = sweep.run(str(STUDY), "smoke", root)
        assert (done.cells, done.failed) == (cells.CELLS, 0), done
        return done.wall_s


def through_tune(count: int, *, reuse: bool, loggers: bool) -> float:
    """Seconds of a sweep of `count` cells with one Tune trial per cell, on a Ray that is up."""
    from ray import tune

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "0" if loggers else "1"
    with tempfile.TemporaryDirectory() as root:
        started = time.perf_counter()
        results = tune.Tuner(
            tune.with_resources(one_cell, {"cpu": 1}),
            param_space={"seed": tune.grid_search(list(range(count)))},
            tune_config=tune.TuneConfig(reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=root, verbose=0),
        ).fit()
        seconds = time.perf_counter() - started
    assert not results.errors
    return seconds


def in_pool_worker(seed: int) -> float:
    import torch

    torch.set_num_threads(1)
    return cells.train_eager(seed)


def through_joblib(count: int, workers: int) -> float:
    """Seconds of `count` cells with one call per cell in a fresh pool of processes."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    started = time.perf_counter()
    with Parallel(n_jobs=workers) as pool:
        pool(delayed(in_pool_worker)(seed) for seed in range(count))
    seconds = time.perf_counter() - started
    get_reusable_executor().shutdown(wait=True)  # the next pool must start its processes too
    return seconds


def extrapolated(time_of: Callable[[int], float], counts: tuple[int, int]) -> float:
    """Seconds of all cells, from the times of few and of many."""
    few, many = (time_of(count) for count in counts)
    each = (many - few) / (counts[1] - counts[0])
    return few + each * (cells.CELLS - counts[0])


def never_slower() -> list[tuple[str, float, float]]:
    """Milliseconds per member and step, packed and one by one, at sizes where packing cannot gain."""
    import torch

    torch.set_num_threads(1)
    rows = []
    for width, batch, members, steps in ((64, 32, 64, 100), (256, 32, 16, 30), (512, 32, 8, 20), (512, 256, 8, 10)):
        seeds = list(range(members))
        packed, single, eager = [], [], []
        for _ in range(3):  # interleaved, the best of each: other load only ever slows down
            started = time.perf_counter()
            cells.train_packed(seeds, width, batch, steps)
            packed.append(time.perf_counter() - started)
            started = time.perf_counter()
            for seed in seeds:
                cells.train_packed([seed], width, batch, steps)
            single.append(time.perf_counter() - started)
            started = time.perf_counter()
            for seed in seeds:
                cells.train_eager(seed, width, batch, steps)
            eager.append(time.perf_counter() - started)
        scale = 1e3 / (members * steps)
        rows.append((f"width {width}, batch {batch}", *(scale * min(times) for times in (packed, single, eager))))
    return rows


def run() -> list[str]:
    """Run the comparison; returns Markdown lines."""
    import ray

    seeds = list(range(4))
    gap = max(abs(a - b) / b for a, b in zip(cells.train_packed(seeds), map(cells.train_eager, seeds), strict=True))
    assert gap < 1e-3, f"the two ways to train disagree by {gap}"
    workers = os.cpu_count() or 1
    through_assay(workers)  # what only the first sweep of a driver pays; the same for the peers below
    ours = min(through_assay(workers) for _ in range(2))
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    through_tune(2, reuse=True, loggers=False)
    peers = {
        "Ray Tune, one trial per cell, defaults": extrapolated(
            lambda count: through_tune(count, reuse=False, loggers=True), FRESH
        ),
        "Ray Tune, one trial per cell, reuse_actors, loggers off": extrapolated(
            lambda count: through_tune(count, reuse=True, loggers=False), REUSED
        ),
    }
    ray.shutdown()
    peers["joblib, one call per cell"] = extrapolated(lambda count: through_joblib(count, workers), POOLED)
    lines = [
        f"### Throughput, {workers} workers",
        "",
        f"{cells.CELLS} networks 64-{cells.WIDTH}-{cells.WIDTH}-10, {cells.STEPS} SGD steps on digits, batch "
        f"{cells.BATCH}, float32. Peers train the same networks, from the same draws on the same batches, in plain "
        f"PyTorch; final losses agree to {gap:.0e}. From a running Ray to the last result, the start of worker processes "
        f"included. Peers run {FRESH}, {REUSED} and {POOLED} cells and are extrapolated linearly.",
        "",
        "| how | all cells | cells/s | Assay is faster by |",
        "| --- | ---: | ---: | ---: |",
        f"| Assay: packs through Ray Tune | {ours:.1f} s | {cells.CELLS / ours:.1f} | |",
    ]
    lines += [
        f"| {name} | {took:.0f} s | {cells.CELLS / took:.1f} | {took / ours:.1f}× |" for name, took in peers.items()
    ]
    lines += [
        "",
        "### A pack against its members one by one, one thread",
        "",
        "| size | packed | the same code, one by one | eager PyTorch |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {size} | {packed:.3f} ms | {single:.3f} ms ({single / packed:.1f}×) | {eager:.3f} ms ({eager / packed:.1f}×) |"
        for size, packed, single, eager in never_slower()
    ]
    return [*lines, "", "Milliseconds per member and step."]
