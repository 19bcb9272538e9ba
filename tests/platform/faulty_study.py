"""A study that misbehaves as `faults.json` beside it says, and notes every execution in `executions` beside it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from assay import Claim, Control, Factor, Pack, Paper, Slope, Study, Table, Trial
from assay.results import Tables

HERE = Path(__file__).parent


def faults() -> dict[str, Any]:
    path = HERE / "faults.json"
    return json.loads(path.read_text()) if path.exists() else {}


if faults().get("importable by", os.getpid()) != os.getpid():
    raise ImportError("there is no such library on this node")


def note(**what: Any) -> None:
    with open(HERE / "executions", "a") as file:  # one short write: whole lines, whoever else appends
        file.write(json.dumps(what) + "\n")


def executions(n: int) -> int:
    lines = (HERE / "executions").read_text().splitlines()
    return sum(json.loads(line)["n"] == n for line in lines)


def measure(pack: Pack) -> dict[str, pd.DataFrame]:
    started = time.time()
    n, wanted = pack["n"], faults()
    fault = wanted.get(str(n))
    note(n=n, started=started, pid=os.getpid())
    if fault == "raise":
        raise ValueError(f"there is no root of {n}\nand never was")
    if fault == "exit":
        raise SystemExit(3)
    if fault == "die" or (fault == "die once" and executions(n) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "no room":  # a folder where the part should go: the store cannot publish
        (HERE / "results" / "faulty" / "smoke" / "values" / f"{pack.id}.parquet").mkdir(parents=True, exist_ok=True)
    time.sleep(wanted.get("seconds", 0.0))
    draws = np.array([np.random.default_rng([seed, n]).normal(size=2) for seed in pack.column("seed")])
    note(n=-n, started=started, ended=time.time())
    return {
        "values": pack.frame(value=draws[:, 0]),
        "curves": pack.frame({"step": [0, 1] if fault != "wrong rows" else [0.5, 1.5]}, value=draws),
    }


def values(tables: Tables) -> pd.DataFrame:
    return tables["values"].rename(columns={"n": "x"})


study = Study(
    name="faulty",
    title="A study with faults",
    summary="Draws that depend on the cell alone.",
    papers=(Paper("none2020", "None", ("N. One",), 2020),),
    version="1",
    trials=(
        Trial(
            "draw",
            (Factor("n", tuple(range(1, 9))), Factor("seed", (0, 1, 2), packed=True)),
            (Table("values", {"value": float}), Table("curves", {"step": int, "value": float})),
            measure,
            gpus={"cluster": 1.0},
        ),
    ),
    claims=(
        Claim(
            "F-1",
            "Draws do not grow.",
            "nowhere",
            Slope(0.0, log=False),
            values,
            (Control("growth", kind=Slope(9.0, log=False)), Control("decay", kind=Slope(-9.0, log=False))),
        ),
    ),
)
