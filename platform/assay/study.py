"""What a study is: plain frozen declarations, checked when they are made.

A `Study` has trials (factors and the function that measures a pack), claims (one machine-checkable sentence each,
with its controls) and figures. Nothing here runs anything: `assay.plan` lays out the cells, `assay.sweep` runs them.
"""

from __future__ import annotations

import itertools
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError, unknown
from assay.kinds import Kind

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from assay.plan import Pack
    from assay.results import Tables

Value = bool | int | float | str
"""What a factor can take: it names a cell, so it must compare and serialise exactly."""

SCALES: Mapping[str, str] = {
    "smoke": "the whole study in less than a minute on two cores; no verdict is promised",
    "laptop": "at most 15 minutes on two cores; honest verdicts",
    "cluster": "the paper's own scale: GPUs, real data sets, hours",
}
OUTCOMES = ("supported", "refuted", "inconclusive", "void")
COLUMN_TYPES = (bool, int, float, str, list[float])
ENGINE_COLUMNS = ("cell", "status")
RESERVED_TABLES = ("runs", "failures")

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise AssayError(f"{what} name {name!r} must be lower-case letters, digits and '_', starting with a letter")


def _check_unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise AssayError(f"{what} {name!r} is declared twice")


def _check_kind(what: str, kind: object) -> None:
    if not isinstance(kind, Kind):
        kinds = ", ".join(one.__name__ for one in typing.get_args(Kind))
        raise AssayError(f"{what}: kind {kind!r} is none of {kinds}")


def _check_data(what: str, data: object) -> None:
    if not callable(data):
        raise AssayError(f"{what}: data must be a function of the tables, found {data!r}")


def check_scale(scale: str) -> str:
    """Return `scale` if it exists; raise AssayError naming the nearest one otherwise."""
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    return scale


@dataclass(frozen=True)
class Factor:
    """A swept axis: the values a cell may take, the same at every scale or given per scale.

    `packed=True` says that the factor leaves every tensor's shape unchanged, so that cells which differ only in
    it can be trained together as one batched program (a seed, a learning rate, a multiplier).
    """

    name: str
    values: tuple[Value, ...] | Mapping[str, tuple[Value, ...]]
    packed: bool = False

    def __post_init__(self) -> None:
        _check_name("factor", self.name)
        if self.name in ENGINE_COLUMNS:
            raise AssayError(f"factor name {self.name!r} is a column of the engine; choose another")
        for scale in self.values if isinstance(self.values, Mapping) else ():
            check_scale(scale)
        for scale in SCALES:
            self._check_values(self.at(scale), scale)
        kinds = {type(self.at(scale)[0]).__name__ for scale in SCALES}
        if len(kinds) > 1:
            raise AssayError(
                f"factor {self.name!r} has values of another type at another scale: {', '.join(sorted(kinds))}"
            )

    def _check_values(self, values: object, scale: str) -> None:
        where = f"factor {self.name!r} at scale {scale!r}"
        if not isinstance(values, tuple) or not values:
            raise AssayError(f"{where} needs a non-empty tuple of values, found {values!r}")
        kinds = {type(value) for value in values}
        if not kinds <= {bool, int, float, str} or len(kinds) > 1:
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise AssayError(f"{where}: values must all be bool, int, float or str and of one type, found {found}")
        if len(set(values)) < len(values):
            raise AssayError(f"{where} repeats a value: {values!r}")

    def at(self, scale: str) -> tuple[Value, ...]:
        """Values at a scale; AssayError if none are declared for it."""
        if not isinstance(self.values, Mapping):
            return self.values
        if scale not in self.values:
            raise AssayError(f"factor {self.name!r} declares no values for scale {scale!r}")
        return self.values[scale]

    @property
    def type(self) -> type:
        """Python type of the values: bool, int, float or str."""
        return type(self.at("smoke")[0])


def scaled(smoke: tuple[Any, ...], laptop: tuple[Any, ...], cluster: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    """Values of a factor at the three scales, as `Factor` takes them."""
    return {"smoke": smoke, "laptop": laptop, "cluster": cluster}


def seeds(smoke: int, laptop: int, cluster: int) -> Factor:
    """The packed factor `seed` with the values 0, 1, ..., so many at each scale: usually a claim's sampling unit."""
    return Factor("seed", scaled(*(tuple(range(count)) for count in (smoke, laptop, cluster))), packed=True)


@dataclass(frozen=True)
class Table:
    """The rows a trial measures: measured columns and their types (bool, int, float, str or list[float]).

    The engine puts `cell`, `status` and the trial's factors in front of them.
    """

    name: str
    columns: Mapping[str, Any]

    def __post_init__(self) -> None:
        _check_name("table", self.name)
        if self.name in RESERVED_TABLES:
            raise AssayError(f"table name {self.name!r} is the engine's own; choose another")
        if not self.columns:
            raise AssayError(f"table {self.name!r} declares no column")
        for column, kind in self.columns.items():
            _check_name(f"table {self.name!r}: column", column)
            if column in ENGINE_COLUMNS:
                raise AssayError(f"table {self.name!r}: column {column!r} is the engine's own; choose another")
            if kind not in COLUMN_TYPES:
                raise AssayError(
                    f"table {self.name!r}: column {column!r} has type {kind!r}; use bool, int, float, str or list[float]"
                )


@dataclass(frozen=True, eq=False)
class Trial:
    """One kind of experiment of a study: its factors, the function that measures a pack, the tables it fills.

    `run(pack)` returns a DataFrame (one table) or a mapping table name → DataFrame, best built with `Pack.frame`.
    `where(cell)` drops combinations of factors that make no sense. `cost(cell)` is the expected time of one cell in
    seconds on one core, `memory(cell)` its bytes: both only plan, they never change a result. `gpus` is the share
    of a GPU one pack asks for, per scale. `workers` is how many processes measure one pack together, per scale (one by
    default; see `Team`); `gpus` is then the share of each.
    """

    name: str
    factors: tuple[Factor, ...]
    tables: tuple[Table, ...]
    run: Callable[[Pack], pd.DataFrame | Mapping[str, pd.DataFrame]]
    where: Callable[[Mapping[str, Any]], bool] | None = None
    cost: Callable[[Mapping[str, Any]], float] | None = None
    memory: Callable[[Mapping[str, Any]], float] | None = None
    gpus: Mapping[str, float] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("trial", self.name)
        if not self.factors:
            raise AssayError(f"trial {self.name!r} declares no factor")
        if not self.tables:
            raise AssayError(f"trial {self.name!r} declares no table")
        if not callable(self.run):
            raise AssayError(f"trial {self.name!r}: run must be a function of a pack, found {self.run!r}")
        names = [factor.name for factor in self.factors]
        _check_unique(f"trial {self.name!r}: factor", names)
        for table in self.tables:
            for column in table.columns:
                if column in names:
                    raise AssayError(
                        f"table {table.name!r}: column {column!r} is already a factor of trial {self.name!r}"
                    )
        for scale in (*self.gpus, *self.workers):
            check_scale(scale)
        for scale, count in self.workers.items():
            if not isinstance(count, int) or count < 1:
                raise AssayError(f"trial {self.name!r}: workers at scale {scale!r} must be 1 or more, found {count!r}")

    def grid(self, scale: str) -> Iterator[dict[str, Value]]:
        """Every combination of factor values at a scale that `where` keeps, in declared order."""
        names = [factor.name for factor in self.factors]
        for values in itertools.product(*(factor.at(scale) for factor in self.factors)):
            cell = dict(zip(names, values, strict=True))
            if self.where is None or self.where(cell):
                yield cell


Data = typing.Callable[["Tables"], "pd.DataFrame"]


@dataclass(frozen=True)
class Control:
    """The same claim made false on purpose: a wrong law, a wrong parametrization, a broken method.

    `data` (default: the claim's) and `kind` (default: the claim's) say how it is judged. It must be refuted.
    `trivial=True` turns the meaning round: a control so weak that passing it would make the claim mean nothing;
    if it is supported too, the claim is `void`.
    """

    name: str
    data: Data | None = None
    kind: Kind | None = None
    why: str = ""
    trivial: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise AssayError("a control needs a name that says what was broken")
        if self.data is None and self.kind is None:
            raise AssayError(f"control {self.name!r} is the claim itself: give it other data or another kind")
        if self.kind is not None:
            _check_kind(f"control {self.name!r}", self.kind)
        if self.data is not None:
            _check_data(f"control {self.name!r}", self.data)


@dataclass(frozen=True)
class Gate:
    """An assumption without which a claim cannot be judged; where it is not supported the claim is `void`."""

    name: str
    data: Data
    kind: Kind
    unit: tuple[str, ...] = ("seed",)
    cases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_kind(f"gate {self.name!r}", self.kind)
        _check_data(f"gate {self.name!r}", self.data)


@dataclass(frozen=True)
class Claim:
    """One machine-checkable sentence of the paper.

    `data(tables)` returns one frame with the columns that `kind` needs, the columns of the sampling `unit` (usually
    the seed: rows of one seed are not independent) and those in `cases`, each combination of which is judged on its
    own. `expect` is the outcome declared beforehand for the laptop and cluster scales: `assay verify` fails if the
    verdict differs. `note` is what a reader of the report should know beside the numbers.
    """

    id: str
    statement: str
    source: str
    kind: Kind
    data: Data
    controls: tuple[Control, ...]
    unit: tuple[str, ...] = ("seed",)
    cases: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    expect: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.id or not self.statement or not self.source:
            raise AssayError(f"claim {self.id!r} needs an id, a statement and a source")
        _check_kind(f"claim {self.id!r}", self.kind)
        _check_data(f"claim {self.id!r}", self.data)
        if sum(not control.trivial for control in self.controls) < 2:
            raise AssayError(f"claim {self.id!r} needs at least two controls that must be refuted")
        _check_unique(f"claim {self.id!r}: control", [control.name for control in self.controls])
        if isinstance(self.unit, str) or not self.unit:
            raise AssayError(f"claim {self.id!r}: unit must be a tuple of column names, found {self.unit!r}")
        if self.expect is not None and self.expect not in OUTCOMES:
            raise unknown(f"outcome expected of claim {self.id!r}:", self.expect, OUTCOMES)


@dataclass(frozen=True)
class Figure:
    """One chart of the report: `draw(tables)` returns an Altair chart, theory as lines, experiment as points."""

    name: str
    title: str
    caption: str
    draw: Callable[[Tables], alt.TopLevelMixin]
    claims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name("figure", self.name)


@dataclass(frozen=True)
class Paper:
    """A citable source: `key` is its BibTeX key."""

    key: str
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str = ""
    arxiv: str = ""

    def bibtex(self) -> str:
        """BibTeX entry of the paper."""
        fields = {"title": f"{{{self.title}}}", "author": " and ".join(self.authors), "year": str(self.year)}
        if self.venue:
            fields["booktitle"] = self.venue
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        body = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
        return f"@{'inproceedings' if self.venue else 'misc'}{{{self.key},\n{body}\n}}"


@dataclass(frozen=True, eq=False)
class Study:
    """One paper's experiment: trials that measure, claims that judge, figures that show.

    Raise `version` when a trial's numbers or a claim's threshold change: cells of another version are never mixed.
    `summary` is one paragraph for the report; `papers` are what `assay cite` prints, the study's own paper first.
    """

    name: str
    title: str
    summary: str
    papers: tuple[Paper, ...]
    version: str
    trials: tuple[Trial, ...]
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...] = ()

    def __post_init__(self) -> None:
        _check_name("study", self.name)
        if not isinstance(self.version, str) or not self.version:
            raise AssayError(f"study {self.name!r}: version must be a text such as '1', found {self.version!r}")
        if not self.papers:
            raise AssayError(f"study {self.name!r} names no paper")
        if not self.trials:
            raise AssayError(f"study {self.name!r} declares no trial")
        _check_unique(f"study {self.name!r}: trial", [trial.name for trial in self.trials])
        _check_unique(f"study {self.name!r}: table", [table.name for table in self.tables])
        _check_unique(f"study {self.name!r}: claim", [claim.id for claim in self.claims])
        _check_unique(f"study {self.name!r}: figure", [figure.name for figure in self.figures])
        known = [claim.id for claim in self.claims]
        for figure in self.figures:
            for claim in figure.claims:
                if claim not in known:
                    raise unknown(f"claim in figure {figure.name!r}:", claim, known)

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables, the study's primary one first."""
        return tuple(table for trial in self.trials for table in trial.tables)

    def trial(self, name: str) -> Trial:
        """The trial of that name."""
        return self._find("trial", name, {trial.name: trial for trial in self.trials})

    def trial_of(self, table: str) -> Trial:
        """The trial that fills a table."""
        return self._find("table", table, {t.name: trial for trial in self.trials for t in trial.tables})

    def claim(self, name: str) -> Claim:
        """The claim of that id."""
        return self._find("claim", name, {claim.id: claim for claim in self.claims})

    def figure(self, name: str) -> Figure:
        """The figure of that name."""
        return self._find("figure", name, {figure.name: figure for figure in self.figures})

    def _find(self, what: str, name: str, known: Mapping[str, Any]) -> Any:
        if name not in known:
            raise unknown(f"{what} of study {self.name!r}:", name, known)
        return known[name]

    def run_pack(self, pack: Pack) -> dict[str, pd.DataFrame]:
        """Measure a pack in this process: table name → rows with `cell`, `status` and the factors in front.

        A row is `diverged` when a measured number is not finite, unless the trial filled `status` itself. Raises
        AssayError when the trial returns something else than its tables.
        """
        from assay.rows import complete_rows

        trial = self.trial(pack.trial)
        result = trial.run(pack)
        frames = dict(result) if isinstance(result, Mapping) else {trial.tables[0].name: result}
        expected = [table.name for table in trial.tables]
        if sorted(frames) != sorted(expected):
            raise AssayError(f"trial {trial.name!r} fills tables {expected}, but returned {sorted(frames)}")
        return {table.name: complete_rows(pack, trial, table, frames[table.name]) for table in trial.tables}
