"""Factors → cells → packs: the grid, stable ids, and packs balanced by expected time and bounded by memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError
from assay.study import Study, Trial, Value, check_scale
from assay.team import ALONE, Team

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PACK_SECONDS = 20.0
"""Longest expected pack: what a killed worker loses, and how fine the work can be balanced."""
PACK_BYTES = 3 * 2**30
"""Largest expected pack: two of them and their copies fit a laptop."""
PACK_CELLS = 256
"""Most cells in a pack: beyond it batching gains nothing (dispatch is already negligible)."""


def _digest(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One experiment: one value per factor. Its id depends on the study's version, the trial and the values alone."""

    id: str
    factors: Mapping[str, Value]


@dataclass(frozen=True)
class Pack:
    """Cells of one trial with equal tensor shapes, trained together: the unit of scheduling.

    `pack["width"]` is a factor that all cells share; `pack.column("seed")` lists a factor's value in every cell.
    `pack.team` is the process among those that measure the pack together, and keeps what training needs to go on.
    """

    study: str
    trial: str
    scale: str
    cells: tuple[Cell, ...]
    device: str = "cpu"
    team: Team = field(default=ALONE, compare=False, repr=False)
    expected_s: float = field(default=0.0, compare=False)
    expected_bytes: float = field(default=0.0, compare=False)

    @cached_property
    def id(self) -> str:
        """Stable name: what cells it holds, nothing else."""
        return f"{self.trial}-{_digest(sorted(cell.id for cell in self.cells))}"

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, factor: str) -> Any:
        """Value of a factor that is the same in all cells; AssayError if it is not."""
        values = self.column(factor)
        if any(value != values[0] for value in values):
            raise AssayError(f"factor {factor!r} differs within pack {self.id}: read it with pack.column({factor!r})")
        return values[0]

    def column(self, factor: str) -> list[Any]:
        """Values of a factor, one per cell, in the pack's order."""
        try:
            return [cell.factors[factor] for cell in self.cells]
        except KeyError:
            raise AssayError(f"trial {self.trial!r} has no factor {factor!r}") from None

    def split(self) -> list[Pack]:
        """Every cell as a pack of its own."""
        return [Pack(self.study, self.trial, self.scale, (cell,), self.device) for cell in self.cells]

    def frame(self, axes: Mapping[str, Sequence[Any]] | None = None, /, **measured: Any) -> pd.DataFrame:
        """Long rows from arrays whose first axis is the pack's cells and whose further axes are `axes`, in order.

        Each measured array (NumPy or torch) has shape (cells, *axis lengths); a list-typed column is a list of
        lists over cells, without axes. AssayError names an array of another shape.

        >>> pack.frame({"step": [1, 2, 4]}, loss=losses)       # losses: (len(pack), 3); doctest: +SKIP
        """
        import numpy as np
        import pandas as pd

        axes = dict(axes or {})
        shape = (len(self), *(len(labels) for labels in axes.values()))
        grids = np.unravel_index(np.arange(int(np.prod(shape))), shape)
        columns: dict[str, Any] = {"cell": np.array([cell.id for cell in self.cells], dtype=object)[grids[0]]}
        for (axis, labels), index in zip(axes.items(), grids[1:], strict=True):
            columns[axis] = pd.array(list(labels))[index] if labels else []
        for name, values in measured.items():
            columns[name] = _flatten(name, values, shape)
        return pd.DataFrame(columns)

    def config(self) -> dict[str, Any]:
        """JSON form, for the scheduler and for provenance."""
        return {
            "study": self.study,
            "trial": self.trial,
            "scale": self.scale,
            "device": self.device,
            "cells": [{"id": cell.id, "factors": dict(cell.factors)} for cell in self.cells],
        }

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Pack:
        """Inverse of `config`."""
        cells = tuple(Cell(cell["id"], cell["factors"]) for cell in config["cells"])
        return Pack(config["study"], config["trial"], config["scale"], cells, config["device"])


def _flatten(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray | list[Any]:
    import numpy as np

    if isinstance(values, list) and len(shape) == 1 and values and isinstance(values[0], (list, np.ndarray)):
        if len(values) != shape[0]:
            raise AssayError(f"column {name!r} has {len(values)} lists for {shape[0]} cells")
        return [np.asarray(value, dtype=np.float64) for value in values]
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.shape != shape:
        raise AssayError(f"column {name!r} has shape {array.shape}; the cells and axes make {shape}")
    return array.reshape(-1)


@cache
def cells(study: Study, trial: Trial, scale: str) -> tuple[Cell, ...]:
    """All cells of a trial at a scale, in the order of the declared grid."""
    grid = trial.grid(check_scale(scale))
    return tuple(Cell(_digest(study.name, study.version, trial.name, factors), factors) for factors in grid)


def plan(study: Study, scale: str, done: Mapping[str, Collection[str]] | None = None) -> list[Pack]:
    """Packs that measure every cell of a study that is not `done`, the longest expected first.

    `done` maps a trial to the ids of its stored cells. Packs are laid out over the whole grid before stored cells
    are dropped, so that planning again after an interruption gives the same packs; a grid that grew gives packs
    of its new cells only.
    """
    check_scale(scale)
    packs: list[Pack] = []
    for trial in study.trials:
        stored = (done or {}).get(trial.name, ())
        for pack in _layout(study, trial, scale):
            missing = tuple(cell for cell in pack.cells if cell.id not in stored)
            if missing:
                packs.append(_costed(trial, Pack(study.name, trial.name, scale, missing)))
    return sorted(packs, key=lambda pack: -pack.expected_s)


def _layout(study: Study, trial: Trial, scale: str) -> list[Pack]:
    """Group cells of equal shapes, then cut each group into equal packs within the limits."""
    shaping = [factor.name for factor in trial.factors if not factor.packed]
    groups: dict[tuple[Value, ...], list[Cell]] = {}
    for cell in cells(study, trial, scale):
        groups.setdefault(tuple(cell.factors[name] for name in shaping), []).append(cell)
    packs = []
    for group in groups.values():
        pieces = [_costed(trial, Pack(study.name, trial.name, scale, tuple(group)))]
        most = max(1, math.floor(len(group) / max(1.0, _excess(pieces[0]))))  # cells that fit, if they were all equal
        count = math.ceil(len(group) / most)
        while len(pieces) < len(group) and max(map(_excess, pieces)) > 1:
            count = max(count, len(pieces) + 1)
            bounds = [round(index * len(group) / count) for index in range(count + 1)]
            pieces = [
                _costed(trial, Pack(study.name, trial.name, scale, tuple(group[low:high])))
                for low, high in itertools.pairwise(bounds)
            ]
        packs += pieces
    return packs


def _excess(pack: Pack) -> float:
    """How many times a pack exceeds the limits."""
    return max(pack.expected_s / PACK_SECONDS, pack.expected_bytes / PACK_BYTES, len(pack) / PACK_CELLS)


def _costed(trial: Trial, pack: Pack) -> Pack:
    seconds = sum(trial.cost(cell.factors) for cell in pack.cells) if trial.cost else 0.0
    size = sum(trial.memory(cell.factors) for cell in pack.cells) if trial.memory else 0.0
    return replace(pack, expected_s=seconds, expected_bytes=size)


def makespan(packs: Sequence[Pack], workers: int) -> float:
    """Expected wall time in seconds when `workers` take the packs in order, the longest first."""
    loads = [0.0] * max(workers, 1)
    for pack in packs:
        loads[loads.index(min(loads))] += pack.expected_s
    return max(loads)
