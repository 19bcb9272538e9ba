"""From the study's tables to the frames that claims are judged on and figures drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from studies.width.parametrizations import INTERPOLATION, PLANE, TABLE_1, TRIVIAL, predicted, spec_of

if TYPE_CHECKING:
    import pandas as pd

    from assay.results import Tables

LINE = 0.10
"""Distance from zero at which an exponent counts as positive or negative."""
NETWORK = ("depth", "parametrization")
STABLE = (*TABLE_1, *INTERPOLATION, *TRIVIAL, "mup-flat-input")


def sizes(
    tables: Tables, quantity: str, t: int | tuple[int, ...], names: tuple[str, ...], network: str = "tanh"
) -> pd.DataFrame:
    """Measured sizes of one quantity: columns x (the width), value, seed, depth, parametrization, layer, t."""
    frame = tables.part("scaling", quantity=quantity, network=network)
    keep = frame["t"].isin((t,) if isinstance(t, int) else t) & frame["parametrization"].isin(names)
    return frame[keep].rename(columns={"width": "x"})


def law(
    frame: pd.DataFrame, quantity: str, exponent: Callable[[str, int, int, int], float] | None = None
) -> pd.DataFrame:
    """Put the predicted exponent of each row beside it; `exponent(name, depth, layer, t)` replaces theory's."""
    keys = ["parametrization", "depth", "layer", "t"]
    kinds = frame[keys].drop_duplicates()
    if exponent is None:
        kinds["prediction"] = [
            predicted(quantity, name, depth, layer, t) for name, depth, layer, t in kinds.itertuples(index=False)
        ]
    else:
        kinds["prediction"] = [exponent(*row) for row in kinds.itertuples(index=False)]
    return frame.merge(kinds, on=keys)


def follows(quantity: str, t: int | tuple[int, ...], names: tuple[str, ...]) -> Callable[[Tables], pd.DataFrame]:
    """Sizes of a quantity beside the exponents that theory gives them."""
    return lambda tables: law(sizes(tables, quantity, t, names), quantity)


def told(
    quantity: str, t: int | tuple[int, ...], names: tuple[str, ...], exponent: Callable[[str, int, int, int], float]
) -> Callable[[Tables], pd.DataFrame]:
    """Sizes of a quantity beside a wrong law: for controls."""
    return lambda tables: law(sizes(tables, quantity, t, names), quantity, exponent)


def side(frame: pd.DataFrame, above: Callable[[str, int], bool], line: float) -> pd.DataFrame:
    """Turn "the slope is above the line exactly where theory says so" into "this slope is not positive".

    Where theory says above, the value becomes x^line / value; elsewhere value / x^line. Its slope is the distance by
    which the measured one is on the wrong side of the line.
    """
    kinds = frame[list(NETWORK)].drop_duplicates()
    kinds["above"] = [above(name, depth) for depth, name in kinds.itertuples(index=False)]
    frame = frame.merge(kinds, on=list(NETWORK))
    ratio = frame["value"] / frame["x"] ** line
    return frame.assign(value=ratio.where(~frame["above"], 1 / ratio)).drop(columns="above")


def fastest(tables: Tables, names: tuple[str, ...]) -> pd.DataFrame:
    """Of h_0^l, f_0, Δh^l and Δf after two steps, the one that grows fastest with n, for every network.

    It is chosen by its mean exponent over seeds: quantities differ in size by constants that say nothing, so their
    largest value would hide growth that has not overtaken the rest yet. What diverged grows fastest of all.
    """
    import pandas as pd

    frame = pd.concat([sizes(tables, quantity, 2, names) for quantity in ("h0", "f0", "dh", "df")])
    frame = frame[frame["value"] != 0]  # a readout that starts at zero: what is exactly zero does not grow
    network = [*NETWORK, "quantity", "layer"]
    growth = slopes(frame, network).fillna({"slope": math.inf}).groupby(network)["slope"].mean().reset_index()
    chosen = growth.sort_values("slope").drop_duplicates([*NETWORK], keep="last")
    return frame.merge(chosen[network], on=network)


def slopes(frame: pd.DataFrame, network: list[str] | None = None) -> pd.DataFrame:
    """Log-log slope of value against x, per network and seed."""
    import numpy as np

    keys = [*(network or NETWORK), "seed"]
    table = frame.assign(lx=np.log(frame["x"]), ly=np.log(frame["value"]))
    centred = table[["lx", "ly"]] - table.groupby(keys)[["lx", "ly"]].transform("mean")
    products = table[keys].assign(xy=centred["lx"] * centred["ly"], xx=centred["lx"] ** 2).groupby(keys).sum()
    return (products["xy"] / products["xx"]).rename("slope").reset_index()


# --- The statements of the theorems, as predicates --------------------------------------------------------------------


@cache
def unstable(name: str, depth: int) -> bool:
    """Theorem 3.3 says that something grows."""
    return not spec_of(name, depth).stable


@cache
def feature_learning(name: str, depth: int) -> bool:
    """Theorem 3.6 says that features evolve."""
    return spec_of(name, depth).regime() == "feature"


@cache
def kernel_names(depth: int) -> tuple[str, ...]:
    """Nontrivial stable parametrizations, for which the dichotomy is claimed."""
    candidates = tuple(name for name in (*STABLE, "mup-zero-readout", *PLANE) if name != "mfp" or depth == 1)
    return tuple(name for name in candidates if spec_of(name, depth).nontrivial)


def nontrivial(tables: Tables, quantity: str, network: str = "tanh") -> pd.DataFrame:
    """Sizes at the last recorded step and in the last layer, for nontrivial stable parametrizations only."""
    import pandas as pd

    parts = []
    for depth in sorted(tables["scaling"]["depth"].unique()):
        frame = sizes(tables, quantity, 4, kernel_names(int(depth)), network)
        parts.append(frame[(frame["depth"] == depth) & (frame["layer"] >= depth)])
    return pd.concat(parts)


def dichotomy(
    tables: Tables, network: str = "tanh", features: str = "feature_kernel", kernel: str = "kernel_residual"
) -> pd.DataFrame:
    """1 where a network of one seed is in exactly one regime: its features evolve, or its residual vanishes.

    Networks that the study measures under two names count once. `features` and `kernel` name the quantities by which
    the two are told; for controls, others than the theorem's.
    """
    evolving, vanishing = slopes(nontrivial(tables, features, network)), slopes(nontrivial(tables, kernel, network))
    frame = evolving.merge(vanishing, on=[*NETWORK, "seed"], suffixes=("_feature", "_kernel"))
    evolves, vanishes = frame["slope_feature"] > -LINE, frame["slope_kernel"] < -LINE
    distinct = frame.assign(value=(evolves ^ vanishes).astype(float))
    return distinct[
        ~distinct["parametrization"].isin(("mfp", "plane:1,0", *(name for name in PLANE if _on_edge(name))))
    ]


def _on_edge(name: str) -> bool:
    """Whether a point of the plane is UP(r) under another name."""
    spec = spec_of(name, 2)
    return spec.init_exponents()[-1] + spec.a[1] == 1


def wrong_r(name: str, depth: int, layer: int, t: int) -> float:
    """-min_k r_k with the indicator 1[l = 1] forgotten in r_1."""
    r = spec_of(name, depth).r_layers(first_step=t == 1)
    return -float(min(r[0] - 1, *r[1:layer]) if layer > 1 else r[0] - 1)


def same_as(other: str, quantity: str) -> Callable[[str, int, int, int], float]:
    """The law of another parametrization."""
    return lambda name, depth, layer, t: predicted(quantity, other, depth, layer, t)


def constant(exponent: float) -> Callable[[str, int, int, int], float]:
    """The same exponent for every network."""
    return lambda name, depth, layer, t: exponent


def identity(variant: str) -> Callable[[Tables], pd.DataFrame]:
    """Differences between the trajectories of two parametrizations, for one way to relate them."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["symmetry"]
        return frame[frame["variant"] == variant].rename(columns={"difference": "value"})

    return data


def stable_rates(exponents: dict[str, float]) -> Callable[[Tables], pd.DataFrame]:
    """Largest stable learning rates beside the given exponents."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["stability"].rename(columns={"width": "x", "max_eta": "value"})
        frame = frame[frame["parametrization"].isin(exponents)]
        return frame.assign(prediction=frame["parametrization"].map(exponents))

    return data


def best_rates(exponents: dict[str, float]) -> Callable[[Tables], pd.DataFrame]:
    """Best learning rates beside the given exponents."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = optima(tables)
        frame = frame[frame["parametrization"].isin(exponents)]
        return frame.assign(prediction=frame["parametrization"].map(exponents))

    return data


def optima(tables: Tables) -> pd.DataFrame:
    """Best learning rate of every network and seed: the vertex of the parabola through the three best grid points.

    The loss is that on the whole training set after the last step; diverged runs count as infinitely bad. A best point
    at the edge of the grid has no vertex and gives NaN, which the verdict counts as diverged.
    """
    import numpy as np
    import pandas as pd

    rows = []
    keys = ["loss_function", "parametrization", "width", "seed"]
    for key, curve in tables["transfer"].sort_values("log2_eta").groupby(keys):
        loss = curve["loss"].to_numpy().copy()
        loss[~np.isfinite(loss)] = np.inf
        grid, best = curve["log2_eta"].to_numpy(), int(np.argmin(loss))
        vertex = np.nan
        if 0 < best < len(grid) - 1:
            low, mid, high = np.log(loss[best - 1 : best + 2])
            bend = low - 2 * mid + high
            shift = 0.5 * (low - high) / bend if np.isfinite(bend) and bend > 0 else 0.0
            vertex = 2.0 ** (grid[best] + shift * (grid[1] - grid[0]))
        rows.append((*key, vertex))
    return pd.DataFrame(rows, columns=[*keys, "value"]).rename(columns={"width": "x"})


def kernel_errors(quantity: str, name: str) -> Callable[[Tables], pd.DataFrame]:
    """Relative distance from a kernel prediction, for one parametrization."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["kernel"]
        keep = (frame["quantity"] == quantity) & (frame["parametrization"] == name)
        return frame[keep].rename(columns={"width": "x"})

    return data


def contributions(tables: Tables, name: str) -> pd.DataFrame:
    """Isolated contributions to the activations and to f after two steps."""
    import pandas as pd

    return pd.concat([sizes(tables, quantity, 2, (name,)) for quantity in ("dWx", "dWx_out", "W0dx_out")])


def only(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of one parametrization."""
    return frame[frame["parametrization"] == name]


def effect(tables: Tables) -> pd.DataFrame:
    """Relative change of the feature kernel where r = 0, at the largest width of each network."""
    frame = nontrivial(tables, "feature_kernel")
    networks = zip(frame["parametrization"], frame["depth"], strict=True)
    frame = frame[[feature_learning(name, depth) for name, depth in networks]]
    return frame[frame["x"] == frame.groupby(list(NETWORK))["x"].transform("max")]


def nonlinearity(network: str) -> Callable[[Tables], pd.DataFrame]:
    """Residual of the linearisation of μP, measured: at rounding level the network is linear in its weights."""
    return lambda tables: only(nontrivial(tables, "kernel_residual", network), "mup")
