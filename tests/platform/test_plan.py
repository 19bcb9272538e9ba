"""Cells have stable names; packs cover the grid once, within limits, the same ones whenever they are planned."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay import AssayError, Cell, Claim, Control, Factor, Pack, Paper, Slope, Study, Table, Trial
from assay.plan import PACK_BYTES, PACK_CELLS, PACK_SECONDS, cells, makespan, plan


def study(*trials: Trial, version: str = "1") -> Study:
    controls = (Control("flat", kind=Slope(0.0)), Control("steep", kind=Slope(-2.0)))
    claim = Claim("P-1", "s", "src", Slope(-1.0), lambda tables: tables["losses"], controls)
    return Study("toy", "T", "S", (Paper("k", "t", ("a",), 2000),), version, trials, (claim,))


def trial(widths: int = 2, seeds: int = 3, name: str = "train", **changes: Any) -> Trial:
    factors = (
        Factor("width", tuple(2**n for n in range(widths))),
        Factor("seed", tuple(range(seeds)), packed=True),
    )
    fields: dict[str, Any] = {"factors": factors, "tables": (Table(f"{name}_rows", {"loss": float}),)}
    return Trial(name, **fields | {"run": lambda pack: pack.frame(loss=np.zeros(len(pack)))} | changes)


def identities(packs: list[Pack]) -> list[tuple[str, list[str]]]:
    return [(pack.id, [cell.id for cell in pack.cells]) for pack in packs]


def covered(packs: list[Pack]) -> list[str]:
    return sorted(cell.id for pack in packs for cell in pack.cells)


def test_a_cells_id_is_the_digest_of_study_version_trial_and_values() -> None:
    declared = study(trial())
    for cell in cells(declared, declared.trials[0], "smoke"):
        said = ["toy", "1", "train", dict(sorted(cell.factors.items()))]
        text = json.dumps(said, separators=(",", ":")).encode()
        assert cell.id == hashlib.blake2b(text, digest_size=10).hexdigest()


def test_an_id_tells_values_of_different_types_apart_and_ignores_order_and_scale() -> None:
    def ids(*factors: Factor, scale: str = "smoke") -> set[str]:
        declared = study(trial(factors=factors))
        return {cell.id for cell in cells(declared, declared.trials[0], scale)}

    kinds = [ids(Factor("a", (value,))) for value in (1, 1.0, True, "1")]
    assert len(set.union(*kinds)) == len(kinds)
    a, b = Factor("a", (1, 2)), Factor("b", ("x", "é"))
    assert ids(a, b) == ids(b, a)
    grown = Factor("a", {"smoke": (1, 2), "laptop": (1, 2, 3), "cluster": (4,)})
    assert ids(grown) == ids(a)
    assert ids(grown) < ids(grown, scale="laptop")


def test_a_packs_id_is_what_cells_it_holds() -> None:
    pack = plan(study(trial()), "smoke")[0]
    shuffled = Pack(pack.study, pack.trial, "laptop", pack.cells[::-1], device="cuda", expected_s=9.0)
    assert shuffled.id == pack.id
    assert re.fullmatch(r"train-[0-9a-f]{20}", pack.id)
    assert len({part.id for part in [pack, *pack.split()]}) == 1 + len(pack)


def test_planning_twice_gives_the_same_packs_that_cover_the_grid_once() -> None:
    declared = study(trial(3, 700), trial(2, 5, name="other"))
    first, second = plan(declared, "smoke"), plan(declared, "smoke")
    assert identities(first) == identities(second)
    assert covered(first) == sorted(cell.id for one in declared.trials for cell in cells(declared, one, "smoke"))


def test_packs_hold_cells_of_one_shape_and_one_trial() -> None:
    for pack in plan(study(trial(3, 4), trial(2, 5, name="other")), "smoke"):
        assert len(set(pack.column("width"))) == 1
        assert {cell.factors["seed"] for cell in pack.cells} == set(range(4 if pack.trial == "train" else 5))


def test_stored_cells_are_dropped_and_the_other_packs_stay() -> None:
    declared = study(trial(2, 2 * PACK_CELLS))
    whole = plan(declared, "smoke")
    assert len(whole) == 4
    gone = whole[1]
    rest = plan(declared, "smoke", {"train": {cell.id for cell in gone.cells}})
    assert identities(rest) == [one for one in identities(whole) if one[0] != gone.id]
    half = {cell.id for cell in gone.cells[::2]}
    partly = plan(declared, "smoke", {"train": half})
    assert covered(partly) == sorted(set(covered(whole)) - half)
    assert plan(declared, "smoke", {"train": set(covered(whole))}) == []


def test_a_grown_grid_plans_its_new_cells_only() -> None:
    small, large = study(trial(2, 3)), study(trial(3, 5))
    done = set(covered(plan(small, "smoke")))
    new = plan(large, "smoke", {"train": done})
    assert covered(new) == sorted(set(covered(plan(large, "smoke"))) - done)
    assert len(covered(new)) == 3 * 5 - 2 * 3


def test_stored_cells_of_one_trial_say_nothing_of_another() -> None:
    declared = study(trial(), trial(name="other"))
    done = {cell.id for cell in cells(declared, declared.trial("other"), "smoke")}
    assert covered(plan(declared, "smoke", {"train": done})) == covered(plan(declared, "smoke"))


@given(
    seeds=st.integers(1, 3 * PACK_CELLS),
    cost=st.floats(0, 3 * PACK_SECONDS),
    memory=st.floats(0, 2 * PACK_BYTES),
)
def test_packs_keep_to_time_memory_and_number(seeds: int, cost: float, memory: float) -> None:
    packs = plan(study(trial(1, seeds, cost=lambda cell: cost, memory=lambda cell: memory)), "smoke")
    assert sum(map(len, packs)) == seeds
    limits = ((PACK_SECONDS, cost), (PACK_BYTES, memory), (PACK_CELLS, 1))
    fit = [math.floor(limit / each * (1 + 1e-9)) if each * seeds > limit else seeds for limit, each in limits]
    most = max(1, min(fit))
    for pack in packs:
        assert len(pack) <= most
        assert pack.expected_s == pytest.approx(len(pack) * cost)
        assert pack.expected_bytes == pytest.approx(len(pack) * memory)
    sizes = [len(pack) for pack in packs]
    assert max(sizes) - min(sizes) <= 1
    assert len(packs) <= math.ceil(seeds / most) + 1  # no more than needed, but for rounding


@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_packs_of_unequal_cells_keep_to_the_limits_too(seeds: int, draw: int) -> None:
    times = np.random.default_rng(draw).exponential(PACK_SECONDS / 3, size=seeds)
    for pack in plan(study(trial(1, seeds, cost=lambda cell: times[cell["seed"]])), "smoke"):
        assert pack.expected_s <= PACK_SECONDS or len(pack) == 1


def test_a_cell_beyond_every_limit_is_a_pack_of_one() -> None:
    packs = plan(study(trial(1, 3, cost=lambda cell: 10 * PACK_SECONDS, memory=lambda cell: 9 * PACK_BYTES)), "smoke")
    assert [len(pack) for pack in packs] == [1, 1, 1]


def test_the_longest_pack_comes_first_over_all_trials() -> None:
    def cost(cell: Mapping[str, Any]) -> float:
        return 0.1 * cell["width"]

    packs = plan(study(trial(4, 6, cost=cost), trial(1, 3, name="other", cost=lambda cell: 0.5)), "smoke")
    times = [pack.expected_s for pack in packs]
    assert times == sorted(times, reverse=True)
    assert packs[0]["width"] == 8
    assert {pack.trial for pack in packs} == {"train", "other"}


def test_where_leaves_out_cells() -> None:
    declared = study(trial(3, 4, where=lambda cell: cell["width"] > cell["seed"]))
    kept = [cell.factors for cell in cells(declared, declared.trials[0], "smoke")]
    assert kept == [{"width": w, "seed": s} for w, s in itertools.product((1, 2, 4), range(4)) if w > s]
    assert sorted(len(pack) for pack in plan(declared, "smoke")) == [1, 2, 4]


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(AssayError, match=r"unknown scale 'lap'; did you mean 'laptop'\?"):
        plan(study(trial()), "lap")


def test_makespan_lies_between_perfect_balance_and_one_worker() -> None:
    packs = plan(study(trial(6, 5, cost=lambda cell: float(cell["width"]))), "smoke")
    total, longest = sum(pack.expected_s for pack in packs), packs[0].expected_s
    assert makespan(packs, 1) == total
    for workers in (2, 3, 4):
        best = max(total / workers, longest)
        assert best <= makespan(packs, workers) <= (4 / 3) * best  # longest first (Graham 1969, theorem 3)
    assert makespan(packs, 100) == longest
    assert makespan([], 2) == 0.0


def test_config_goes_through_json_and_back() -> None:
    factors = (Factor("rate", (0.1, 1e-300, math.inf)), Factor("on", (True, False)), Factor("name", ("μP", "ntp")))
    for pack in plan(study(trial(factors=factors)), "laptop"):
        again = Pack.from_config(json.loads(json.dumps(pack.config())))
        assert again == pack
        assert again.id == pack.id
        for cell, same in zip(pack.cells, again.cells, strict=True):
            assert [*map(type, cell.factors.values())] == [*map(type, same.factors.values())]


@pytest.fixture
def pack() -> Pack:
    return Pack("toy", "train", "smoke", tuple(Cell(f"c{s}", {"width": 8, "seed": s}) for s in range(3)))


def test_a_factor_is_read_once_where_shared_and_as_a_column_elsewhere(pack: Pack) -> None:
    assert pack["width"] == 8
    assert pack.column("seed") == [0, 1, 2]
    with pytest.raises(AssayError, match=r"factor 'seed' differs within pack .*: read it with pack.column\('seed'\)"):
        _ = pack["seed"]
    with pytest.raises(AssayError, match="trial 'train' has no factor 'sed'"):
        pack.column("sed")
    assert [part["seed"] for part in pack.split()] == [0, 1, 2]


def test_frame_lays_arrays_out_in_long_rows(pack: Pack) -> None:
    loss = np.arange(3 * 2 * 4, dtype=float).reshape(3, 2, 4)
    frame = pack.frame({"layer": ["in", "out"], "step": [1, 2, 4, 8]}, loss=loss, twice=(2 * loss).tolist())
    assert list(frame.columns) == ["cell", "layer", "step", "loss", "twice"]
    for (cell, layer, step), value in np.ndenumerate(loss):
        row = frame[
            (frame["cell"] == f"c{cell}") & (frame["layer"] == ["in", "out"][layer]) & (frame["step"] == 2**step)
        ]
        assert row["loss"].tolist() == [value]
        assert row["twice"].tolist() == [2 * value]
    assert len(frame) == loss.size


def test_frame_takes_torch_with_gradients_and_lists_of_spectra(pack: Pack) -> None:
    import torch

    tensor = torch.arange(3.0, requires_grad=True)
    frame = pack.frame(loss=tensor, spectrum=[[1.0], [2, 3], np.array([4.0, 5.0])])
    assert frame["loss"].tolist() == [0.0, 1.0, 2.0]
    assert [value.tolist() for value in frame["spectrum"]] == [[1.0], [2.0, 3.0], [4.0, 5.0]]
    assert all(value.dtype == np.float64 for value in frame["spectrum"])


def test_frame_of_an_empty_axis_has_no_rows(pack: Pack) -> None:
    frame = pack.frame({"step": []}, loss=np.zeros((3, 0)))
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == 0
    assert list(frame.columns) == ["cell", "step", "loss"]


@pytest.mark.parametrize(
    ("axes", "values", "message"),
    [
        (None, np.zeros(4), "column 'loss' has shape (4,); the cells and axes make (3,)"),
        (None, 1.0, "column 'loss' has shape (); the cells and axes make (3,)"),
        ({"step": [1, 2]}, np.zeros((2, 3)), "column 'loss' has shape (2, 3); the cells and axes make (3, 2)"),
        ({"step": [1, 2]}, np.zeros(3), "column 'loss' has shape (3,); the cells and axes make (3, 2)"),
        (None, [[1.0], [2.0]], "column 'loss' has 2 lists for 3 cells"),
    ],
)
def test_frame_names_an_array_of_another_shape(pack: Pack, axes: Any, values: Any, message: str) -> None:
    with pytest.raises(AssayError, match=re.escape(message)):
        pack.frame(axes, loss=values)
