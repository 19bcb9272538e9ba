"""What the claims on approximation, costs and fits are judged on, from the tables of their trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from studies.prefix.fitting import FIT_KINDS
from studies.prefix.prefixes import DEGREES

if TYPE_CHECKING:
    import pandas as pd

    from assay.results import Tables

Data = Callable[["Tables"], "pd.DataFrame"]

SMALL = 1.5
"""Largest logit up to which degrees are compared."""
LONG = 64
"""Least m of the laws in m: below it the input's own keys hold much of the softmax."""
LAW_MAPS = ("degree 1", "degree 2", "degree 3", "ELU+1", "random")
"""Maps that do not change with m and know of the logits."""
LAW_SPREADS = (0.1, 0.3)
"""Standard deviations of the logits at which denominators stay positive."""

CELL = ["kind", "spread", "m", "seed"]


def errors(tables: Tables, kind: str, arm: str = "folded", least: int = LONG) -> pd.DataFrame:
    """Errors of one kind of prefix and one arm where every denominator is positive; `value`, and `x` = m."""
    frame = tables.part("errors", arm=arm)
    frame = frame[~frame["nonpositive"].astype(bool)]
    frame = frame[(frame["kind"] == kind) & frame["spread"].isin(LAW_SPREADS) & (frame["m"] >= least)]
    return frame.assign(value=frame["error"], x=frame["m"])


def small(frame: pd.DataFrame) -> pd.DataFrame:
    """The settings in which no logit of any seed exceeds `SMALL`."""
    return frame[frame.groupby(["kind", "spread", "m"])["logit"].transform("max") <= SMALL]


def degrees_of(frame: pd.DataFrame) -> list[int]:
    """The degrees that were measured: where features are too many the highest are not."""
    names = set(frame["map"])
    return [g for g in DEGREES if f"degree {g}" in names]


def steps(kind: str = "shifted", arm: str = "folded", swapped: bool = False) -> Data:
    """The error of each degree as value beside that of the degree below it, where no logit exceeds `SMALL`."""

    def data(tables: Tables) -> pd.DataFrame:
        import pandas as pd

        frame = tables.part("errors", arm=arm)
        frame = small(frame[frame["kind"] == kind])
        known = degrees_of(frame)
        names = [f"degree {g}" for g in known]
        wide = frame.pivot(index=CELL, columns="map", values="error").reindex(columns=names).reset_index()
        parts = [wide[CELL].iloc[:0].assign(degree=0, value=0.0, reference=0.0)]
        for g in known[1:]:
            ends = wide[f"degree {g}"], wide[f"degree {g - 1}"]
            value, reference = reversed(ends) if swapped else ends
            parts.append(wide[CELL].assign(degree=g, value=value, reference=reference))
        return pd.concat(parts, ignore_index=True)

    return data


def bounded(arm: str = "folded", held: int | None = None, maps: str = "degree") -> Data:
    """Error beside its bound, where that is finite; `held` puts the bound of that degree in the place of its own.

    The bound takes the largest logit, the largest value and the largest share of the prefix in the softmax.
    """

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables.part("errors", arm=arm)
        frame = frame[frame["map"].str.startswith(maps)]
        degrees = [int(name.split()[1]) if held is None else held for name in frame["map"]]
        limits = [limit(g, *row) for g, row in zip(degrees, frame[["logit", "value", "share"]].to_numpy(), strict=True)]
        frame = frame.drop(columns="value").assign(value=frame["error"], limit=limits)
        return frame[frame["limit"] < math.inf]

    return data


def limit(degree: int, logit: float, value: float, share: float) -> float:
    """The bound on the error of a cell."""
    from theory.ntk_attention.bounds import output_error, weight_error

    return output_error(weight_error(degree, logit), value, share)


def fixed(kind: str, maps: tuple[str, ...] = LAW_MAPS, arm: str = "folded") -> Data:
    """Error against m for maps that do not change with m."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = errors(tables, kind, arm)
        return frame[frame["map"].isin(maps)]

    return data


def growing(arm: str = "folded", reverse: bool = False) -> Data:
    """Error on shifted prefixes, with small logits, against m with the degree ceil(log2(m) / 4), one more for every factor of 16."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = small(errors(tables, "shifted", arm, least=1))
        top = max(degrees_of(frame), default=0)
        degrees = {m: min(math.ceil(math.log2(m) / 4), top) for m in frame["m"].unique()}
        wanted = frame["m"].map({m: f"degree {top - g if reverse else g}" for m, g in degrees.items()})
        return frame[(frame["map"] == wanted) & (frame["m"] <= 16**top)]

    return data


def against(name: str, reference: str = "degree 0", arm: str = "folded") -> Data:
    """The error of one map as value beside that of another as it should be, on shifted prefixes."""

    def data(tables: Tables) -> pd.DataFrame:
        own, other = errors(tables, "shifted", arm), errors(tables, "shifted")
        own, other = own.loc[own["map"] == name, [*CELL, "value"]], other[other["map"] == reference]
        return own.merge(other[CELL].assign(reference=other["value"]), on=CELL)

    return data


def parities(law: Callable[[int, float], float] | None = None) -> Data:
    """The measured factor of each degree beside a law, by default E[p_{g-1}(t)] / E[p_g(t)]."""

    def data(tables: Tables) -> pd.DataFrame:
        from theory.ntk_attention.bounds import parity_factor

        frame, own = tables["parity"], law or parity_factor
        pairs = zip(frame["degree"].tolist(), frame["variance"].tolist(), strict=True)
        return frame.assign(value=frame["factor"], prediction=[own(g, v) for g, v in pairs])

    return data


def operations(arms: dict[str, str], kappa: bool = True) -> Data:
    """Counted operations of arms beside the formula of another arm each; without `kappa` its product is left out."""

    def data(tables: Tables) -> pd.DataFrame:
        import pandas as pd

        from theory.ntk_attention.costs import exact_flops, ntk_flops

        parts = []
        for arm, formula in arms.items():
            frame = tables.part("counts", arm=arm)
            rows = frame[["tokens", "m", "d"]].to_numpy().tolist()
            expected = [
                exact_flops(L, m, d) if formula == "exact" else ntk_flops(L, d, d) - (0 if kappa else 2 * L * d)
                for L, m, d in rows
            ]
            parts.append(frame.assign(value=frame["flops"], prediction=expected))
        return pd.concat(parts, ignore_index=True)

    return data


def held(arm: str) -> Data:
    """Most bytes alive during a forward beside those at the shortest prefix."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables.part("counts", arm=arm).sort_values("m")
        first = frame.groupby(["tokens", "d"])["held_bytes"].transform("first")
        return frame.assign(value=frame["held_bytes"], prediction=first)

    return data


def timed(arm: str, least: float = 0.0, most: float = math.inf) -> Data:
    """Seconds of a forward against m, for m between `least` and `most` times the tokens of the input."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables.part("times", arm=arm)
        ratio = frame["m"] / frame["tokens"]
        frame = frame[(ratio >= least) & (ratio <= most)]
        return frame.assign(value=frame["seconds"], x=frame["m"])

    return data


HEADS = 12
"""Heads of the ViT-B whose width a wrong count takes for the dimension of a head."""


def parameters(wrong: str = "") -> Data:
    """Entries of Z and kappa beside the formula; `wrong` names the mistake in the formula.

    The number r of features is what the map's name says, d for ELU+1, 1 + d at degree 1, d^2 random ones, and not counted.
    """

    def data(tables: Tables) -> pd.DataFrame:
        from theory.ntk_attention.costs import ntk_parameters, p_tuning_parameters

        frame = tables["sizes"]
        r_of = {"ELU+1": lambda d: d, "degree 1": lambda d: 1 + d, "random": lambda d: d * d}
        expected = []
        for name, d, m in zip(frame["map"], frame["d"], frame["m"], strict=True):
            r = r_of[name](d)
            if wrong == "width":
                expected.append(ntk_parameters(HEADS * d))
            elif wrong == "prefix":
                expected.append(p_tuning_parameters(m, d))
            else:
                expected.append(ntk_parameters(d, r) - (r if wrong == "kappa" else 0))
        return frame.assign(value=frame["z_size"] + frame["kappa_size"], prediction=expected)

    return data


def fits(
    column: str = "fitted",
    maps: tuple[str, ...] = ("degree 1", "ELU+1"),
    spreads: tuple[float, ...] = (0.3, 1.0),
    kinds: tuple[str, ...] = FIT_KINDS,
    least: int = 1,
) -> Data:
    """Held-out error, fits with a denominator that is not positive among the others: to cross a pole is to fail."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["fits"]
        frame = frame[frame["map"].isin(maps) & frame["spread"].isin(spreads) & frame["kind"].isin(kinds)]
        frame = frame[frame["m"] >= least]
        return frame.assign(value=frame[column])

    return data


def affine(column: str = "fitted", name: str = "degree 1") -> Data:
    """Held-out error where long prefixes have an attention that is affine in the query, with small logits."""
    return fits(column, (name,), (0.3,), ("gaussian", "shifted"), LONG)


def leaks(column: str) -> Data:
    """Held-out error where the prefix is among keys and values, relative to the output."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["leaks"]
        return frame.assign(value=frame[column])

    return data
