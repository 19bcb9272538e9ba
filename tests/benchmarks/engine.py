"""What the engine itself costs: imports, commits, reads, SQL, and answering for a finished study."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GALLERY = Path(__file__).parents[2] / "reports"
STUDY = Path(__file__).parents[1] / "platform" / "mean_study.py"


def seconds(command: list[str], repeats: int = 5) -> float:
    """Median wall time of a whole process."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def filled_store(root: str, parts: int, rows: int):
    """A store with one table of `parts` parts and `rows` rows in all; returns it, its schema and seconds per commit."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from assay.store import Store

    store = Store(root)
    schema = pa.schema(
        [
            ("cell", pa.string()),
            ("status", pa.string()),
            ("width", pa.int64()),
            ("seed", pa.int64()),
            ("loss", pa.float64()),
        ]
    )
    each, times = rows // parts, []
    dice = np.random.default_rng(0)
    for part in range(parts):
        ids = np.array([f"c{part:05d}x{row:07d}" for row in range(each)], dtype=object)
        frame = pd.DataFrame(
            {
                "cell": ids,
                "status": "ok",
                "width": 2 ** dice.integers(5, 12, each),
                "seed": part,
                "loss": dice.random(each),
            }
        )
        started = time.perf_counter()
        store.commit("mean", "smoke", f"draw-{part:05d}", {"errors": (schema, frame)}, version="1", trial="draw",
                     cells=list(ids), provenance={})  # fmt: skip
        times.append(time.perf_counter() - started)
    return store, schema, statistics.median(times)


def run() -> list[str]:
    """Measure; returns Markdown lines."""
    from assay.query import Source, sql

    lines = ["### The engine", "", "| what | median |", "| --- | ---: |"]
    bare = seconds([sys.executable, "-c", "pass"])
    lines.append(f"| `import assay` | {seconds([sys.executable, '-c', 'import assay']) - bare:.2f} s |")
    with tempfile.TemporaryDirectory() as root:
        run_it = [
            sys.executable,
            "-c",
            "from assay.cli import main; main()",
            "run",
            str(STUDY),
            "--results",
            f"{root}/r",
            "--out",
            f"{root}/o",
        ]
        subprocess.run(run_it, check=True, capture_output=True)
        lines.append(f"| `assay run` of a finished study of 24 cells | {seconds(run_it):.2f} s |")
    if (GALLERY / "width.html").exists():
        command = "from assay.cli import main; main()"
        options = ["width", "--scale", "laptop", "--results", str(GALLERY / "results"), "--out", str(GALLERY)]
        run_it = [sys.executable, "-c", command, "run", *options]
        lines.append(f"| `assay run width --scale laptop`, finished | {seconds(run_it):.2f} s |")
    with tempfile.TemporaryDirectory() as root:
        store, schema, commit = filled_store(root, 300, 10_000 // 300 * 300)
        lines.append(f"| commit of one pack, synced to disk | {1e3 * commit:.1f} ms |")
        times = []
        for _ in range(5):
            started = time.perf_counter()
            frame = store.read("mean", "smoke", "errors", schema, "1").to_pandas()
            times.append(time.perf_counter() - started)
        lines.append(f"| a table of {len(frame)} rows in 300 parts into pandas | {statistics.median(times):.2f} s |")
    with tempfile.TemporaryDirectory() as root:
        store, schema, _ = filled_store(root, 50, 1_000_000)
        source = Source(store, "mean", "smoke", "1", {"errors": schema})
        times = []
        for _ in range(3):
            started = time.perf_counter()
            groups = sql([source], "select width, avg(loss) from mean group by width")
            times.append(time.perf_counter() - started)
            assert len(groups) == 7
        lines.append(f"| SQL group-by over 1 000 000 rows | {statistics.median(times):.2f} s |")
    return lines
