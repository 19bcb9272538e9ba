"""Cells per second end to end: packs through Assay against one cell per Ray Tune trial, and against a process pool."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tests.benchmarks import throughput_study as cells

STUDY = Path(__file__).with_name("throughput_study.py")
SUBSET = {"fresh": 8, "reused": 120, "joblib": 200}
"""Cells that the slow peers run; their rate is extrapolated to all cells."""


def one_cell(config: dict) -> None:
    """One Tune trial, one network."""
    import torch
    from ray import tune

    torch.set_num_threads(1)
    tune.report({"loss": cells.train_eager(config["seed"])})


def through_assay() -> tuple[float, int]:
    """Seconds of the whole sweep, Ray's start included, and workers."""
    from assay import sweep

    with tempfile.TemporaryDirectory() as root:
        done = sweep.run(str(STUDY), "smoke", root)
        assert done.cells == cells.CELLS, done
        assert done.failed == 0, done
        return done.wall_s, done.workers


def through_tune(count: int, *, reuse: bool, loggers: bool) -> float:
    """Seconds per cell with one Tune trial per cell."""
    from ray import tune

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
    return seconds / count


def in_pool_worker(seed: int) -> float:
    import torch

    torch.set_num_threads(1)
    return cells.train_eager(seed)


def through_joblib(count: int, workers: int) -> float:
    """Seconds per cell with one call per cell in a warm pool of processes."""
    from joblib import Parallel, delayed

    with Parallel(n_jobs=workers) as pool:
        pool(delayed(in_pool_worker)(seed) for seed in range(2 * workers))
        started = time.perf_counter()
        pool(delayed(in_pool_worker)(seed) for seed in range(count))
        return (time.perf_counter() - started) / count


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
    wall, workers = through_assay()  # starts and stops a Ray of its own
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    through_tune(2, reuse=True, loggers=False)  # first-sweep costs of Ray are not the peers' fault
    peers = {
        f"Ray Tune, one trial per cell, defaults ({SUBSET['fresh']} cells)": through_tune(
            SUBSET["fresh"], reuse=False, loggers=True
        ),
        f"Ray Tune, one trial per cell, reuse_actors, loggers off ({SUBSET['reused']} cells)": through_tune(
            SUBSET["reused"], reuse=True, loggers=False
        ),
        f"joblib pool, one cell per call ({SUBSET['joblib']} cells)": through_joblib(SUBSET["joblib"], workers),
    }
    ray.shutdown()
    lines = [
        f"### Throughput, {workers} workers",
        "",
        f"{cells.CELLS} networks 64-{cells.WIDTH}-{cells.WIDTH}-10, {cells.STEPS} SGD steps on digits, batch {cells.BATCH}, "
        f"float32. Peers train the same networks from the same draws on the same batches in plain PyTorch; final losses agree "
        f"to {gap:.0e}. Peers run the number of cells given and are extrapolated. Ray's own start is included for Assay only.",
        "",
        "| how | cells/s | Assay is faster by |",
        "| --- | ---: | ---: |",
        f"| Assay: packs through Ray Tune, Ray's start included | {cells.CELLS / wall:.1f} | 1 |",
    ]
    lines += [f"| {name} | {1 / seconds:.2f} | {seconds * cells.CELLS / wall:.0f} |" for name, seconds in peers.items()]
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
