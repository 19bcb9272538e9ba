"""What a study found: its stored tables, and the verdicts over them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError, unknown
from assay.plan import cells
from assay.rows import schema
from assay.study import SCALES, Claim, Study, check_scale

if TYPE_CHECKING:
    import pandas as pd

    from assay.store import Store
    from assay.verdict import Verdict


class Tables(Mapping[str, "pd.DataFrame"]):
    """The tables of one study at one scale, read when first asked for."""

    def __init__(self, study: Study, load: Callable[[str], pd.DataFrame]) -> None:
        self.study = study
        self._load = load
        self._frames: dict[str, pd.DataFrame] = {}
        self._parts: dict[tuple[str, tuple[str, ...]], dict[Any, pd.DataFrame]] = {}
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> pd.DataFrame:
        names = [table.name for table in self.study.tables]
        if name not in names:
            raise unknown(f"table of study {self.study.name!r}:", name, names)
        self._asked.add(name)
        if name not in self._frames:
            self._frames[name] = self._load(name)
        return self._frames[name].copy(deep=False)  # pandas copies what is then written to

    def part(self, name: str, **values: object) -> pd.DataFrame:
        """Rows of a table whose columns have the given values; the table is split once for each set of columns."""
        columns = tuple(sorted(values))
        if (name, columns) not in self._parts:
            self._parts[name, columns] = dict(iter(self[name].groupby(list(columns), sort=False)))
        self._asked.add(name)
        found = self._parts[name, columns].get(tuple(values[column] for column in columns))
        return self[name].iloc[:0] if found is None else found.copy(deep=False)

    def __iter__(self) -> Iterator[str]:
        return (table.name for table in self.study.tables)

    def __len__(self) -> int:
        return len(self.study.tables)

    @contextlib.contextmanager
    def watching(self) -> Iterator[set[str]]:
        """Collect the names of the tables that are asked for inside the block."""
        self._asked = set()
        yield self._asked


@dataclass(frozen=True)
class Progress:
    """How much of a trial is there, in cells."""

    planned: int
    stored: int
    failed: int

    @property
    def pending(self) -> int:
        """Cells neither stored nor failed."""
        return self.planned - self.stored - self.failed


class Results:
    """One study at one scale in one store. Parts of other versions of the study are not read."""

    def __init__(self, study: Study, scale: str, store: Store) -> None:
        self.study = study
        self.scale = check_scale(scale)
        self.store = store
        self.tables = Tables(study, lambda name: self.read(name).to_pandas())

    def read(self, name: str, columns: list[str] | None = None, filters: object = None):  # type: ignore[no-untyped-def]
        """One table as a `pyarrow.Table`: only the columns and rows asked for are read."""
        trial = self.study.trial_of(name)
        table = next(table for table in trial.tables if table.name == name)
        return self.store.read(
            self.study.name,
            self.scale,
            name,
            schema(trial, table),
            self.study.version,
            columns=columns,
            filters=filters,
        )

    def stored(self) -> dict[str, set[str]]:
        """Ids of the stored cells of each trial."""
        names = {trial.name: tuple(table.name for table in trial.tables) for trial in self.study.trials}
        stored = self.store.stored(self.study.name, self.scale, self.study.version, names)
        return {trial: set(ids) for trial, ids in stored.items()}

    def progress(self) -> dict[str, Progress]:
        """Planned, stored and failed cells of each trial."""
        stored = self.stored()
        failures = self.store.failures(self.study.name, self.scale)
        failed = set(failures["cell"])
        report = {}
        for trial in self.study.trials:
            planned = {cell.id for cell in cells(self.study, trial, self.scale)}
            there = planned & stored.get(trial.name, set())
            report[trial.name] = Progress(len(planned), len(there), len((planned & failed) - there))
        return report

    def verdicts(self) -> list[Verdict]:
        """Judge every claim of the study over what is stored."""
        progress = self.progress()
        return [judge_claim(claim, self.tables, progress) for claim in self.study.claims]


def judge_claim(claim: Claim, tables: Tables, progress: Mapping[str, Progress]) -> Verdict:
    """Judge one claim: its gates, its controls, then the claim itself.

    Cells that failed or are missing in the tables a claim reads keep it from being supported. AssayError when a
    claim's own data function fails on complete tables.
    """
    from assay import verdict

    with tables.watching() as asked:
        try:
            frame = claim.data(tables)
            gates = [
                verdict.GateCase(gate.name, gate.kind, gate.unit, gate.cases, gate.data(tables)) for gate in claim.gates
            ]
            controls = [
                verdict.ControlCase(
                    control.name,
                    control.why,
                    control.kind or claim.kind,
                    control.data(tables) if control.data else frame,
                    control.trivial,
                )
                for control in claim.controls
            ]
            error: Exception | None = None
        except AssayError:  # a damaged part, a table that does not exist
            raise
        except Exception as caught:
            error = caught
        trials = {tables.study.trial_of(name).name for name in asked}
    read = [progress[name] for name in sorted(trials)]
    planned = sum(part.planned for part in read)
    failed = sum(part.failed for part in read)
    pending = sum(part.pending for part in read)
    if error is not None:
        if failed + pending == 0:
            raise AssayError(
                f"claim {claim.id}: its data cannot be computed: {type(error).__name__}: {error}"
            ) from error
        reason = f"not measured: {failed} of {planned} cells failed, {pending} have not run"
        return verdict.Verdict.unmeasured(claim.id, reason)
    try:
        return verdict.judge(
            claim.id,
            claim.kind,
            claim.unit,
            claim.cases,
            frame,
            controls=controls,
            gates=gates,
            planned=planned,
            failed=failed,
            pending=pending,
        )
    except ValueError as unfit:  # the frame lacks what the kind needs: a mistake in the study, told in one line
        raise AssayError(str(unfit)) from unfit


def largest_scale(store: Store, study: str) -> str:
    """Largest scale at which a study has stored parts; AssayError if there is none."""
    stored = store.scales(study)
    for scale in reversed(list(SCALES)):
        if scale in stored:
            return scale
    raise AssayError(f"no results of study {study!r} in {store}; run: assay run {study} --scale smoke")


VERDICT_COLUMNS = (
    "study", "claim", "statement", "source", "kind", "prediction", "estimate", "low", "high", "n",
    "verdict", "reason", "controls", "controls_refuted",
)  # fmt: skip


def verdict_frame(study: Study, verdicts: list[Verdict]) -> pd.DataFrame:
    """One row per claim, with the numbers of the case that decided it."""
    import pandas as pd

    rows = []
    for claim, verdict in zip(study.claims, verdicts, strict=True):
        deciding = verdict.assessment.estimate if verdict.assessment else None
        controls = [control for control in verdict.controls if not control.trivial]
        rows.append(
            {
                "study": study.name,
                "claim": claim.id,
                "statement": claim.statement,
                "source": claim.source,
                "kind": claim.kind.name,
                "prediction": deciding.prediction if deciding else float("nan"),
                "estimate": deciding.estimate if deciding else float("nan"),
                "low": deciding.low if deciding else float("nan"),
                "high": deciding.high if deciding else float("nan"),
                "n": deciding.n if deciding else 0,
                "verdict": verdict.outcome,
                "reason": verdict.reason,
                "controls": len(controls) or len(claim.controls),
                "controls_refuted": sum(control.assessment.outcome == "refuted" for control in controls),
            }
        )
    return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
