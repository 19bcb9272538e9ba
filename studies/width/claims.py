"""The paper's claims, each with the data that decides it and the controls that must fail.

Thresholds. Exponents must lie within ±0.10 of theory (±0.20 for learning rates, which are read off a grid). Where the
paper only says that an exponent is zero or negative, or positive or not, the line between the two is drawn at 0.10
from zero, and `side` turns "on the theorem's side of the line" into one slope that must not be positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from assay import Bound, Claim, Control, Equality, Gate, Proportion, Slope
from studies.width.parametrizations import (
    CONTROLS,
    FAST_SP,
    INTERPOLATION,
    PLANE,
    TABLE_1,
    TRIVIAL,
    predicted,
    spec_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from assay.results import Tables

LINE = 0.10
AGREES = Slope(0.0, band=(math.inf, 0.0))
NETWORK = ("depth", "parametrization")
STABLE = (*TABLE_1, *INTERPOLATION, *TRIVIAL, "mup-flat-input")


def sizes(
    tables: Tables, quantity: str, t: int | tuple[int, ...], names: tuple[str, ...], network: str = "tanh"
) -> pd.DataFrame:
    """Measured sizes of one quantity: columns x (the width), value, seed, depth, parametrization, layer, t."""
    frame = tables["scaling"]
    steps = (t,) if isinstance(t, int) else t
    keep = (
        (frame["quantity"] == quantity)
        & (frame["network"] == network)
        & frame["t"].isin(steps)
        & frame["parametrization"].isin(names)
    )
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
    largest value would hide growth that has not overtaken the rest yet.
    """
    import pandas as pd

    frame = pd.concat([sizes(tables, quantity, 2, names) for quantity in ("h0", "f0", "dh", "df")])
    frame = frame[frame["value"] != 0]  # a readout that starts at zero: what is exactly zero does not grow
    network = [*NETWORK, "quantity", "layer"]
    growth = slopes(frame, network).groupby(network)["slope"].mean().reset_index()
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


def unstable(name: str, depth: int) -> bool:
    """Theorem 3.3 says that something grows."""
    return not spec_of(name, depth).stable


def feature_learning(name: str, depth: int) -> bool:
    """Theorem 3.6 says that features evolve."""
    return spec_of(name, depth).regime() == "feature"


def kernel_names(depth: int) -> tuple[str, ...]:
    """Nontrivial stable parametrizations, for which the dichotomy is claimed."""
    candidates = tuple(name for name in (*STABLE, *PLANE) if name != "mfp" or depth == 1)
    return tuple(name for name in candidates if spec_of(name, depth).nontrivial)


def nontrivial(tables: Tables, quantity: str, network: str = "tanh") -> pd.DataFrame:
    """Sizes at the last recorded step and in the last layer, for nontrivial stable parametrizations only."""
    import pandas as pd

    parts = []
    for depth in (1, 2, 3):
        frame = sizes(tables, quantity, 4, kernel_names(depth), network)
        parts.append(frame[(frame["depth"] == depth) & (frame["layer"] >= depth)])
    return pd.concat(parts)


def dichotomy(tables: Tables, network: str = "tanh", *, both_ways: bool = False) -> pd.DataFrame:
    """1 where a network of one seed is in exactly one regime: its features evolve, or its residual vanishes."""
    feature = slopes(nontrivial(tables, "feature_kernel", network))
    kernel = slopes(nontrivial(tables, "kernel_residual", network))
    frame = feature.merge(kernel, on=["depth", "parametrization", "seed"], suffixes=("_feature", "_kernel"))
    evolves = frame["slope_feature"] > -LINE
    vanishes = frame["slope_kernel"] < -LINE
    exactly_one = evolves & vanishes if both_ways else evolves ^ vanishes
    return frame.assign(value=exactly_one.astype(float))


def wrong_r(name: str, depth: int, layer: int, t: int) -> float:
    """-min_k r_k with the indicator 1[l = 1] forgotten in r_1."""
    r = spec_of(name, depth).r_layers(first_step=t == 1)
    return -float(min(r[0] - 1, *r[1:layer]) if layer > 1 else r[0] - 1)


def last_layer_only(name: str, depth: int, layer: int, t: int) -> float:
    """-r for every layer: the check of someone who looks at the last layer alone."""
    return -float(min(spec_of(name, depth).r_layers(first_step=t == 1)))


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


# --- Gates -----------------------------------------------------------------------------------------------------------


def effect(tables: Tables) -> pd.DataFrame:
    """Relative change of the feature kernel where r = 0, at the largest width."""
    frame = nontrivial(tables, "feature_kernel")
    learning = [
        feature_learning(name, depth) for name, depth in zip(frame["parametrization"], frame["depth"], strict=True)
    ]
    frame = frame[learning]
    return frame[frame["x"] == frame["x"].max()]


def nonlinearity(network: str) -> Callable[[Tables], pd.DataFrame]:
    """Share of φ(g), g ~ N(0, 1), that no linear function explains, one row per seed that used this φ."""

    def data(tables: Tables) -> pd.DataFrame:
        import numpy as np

        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
        values = nodes if network.startswith("linear") else np.tanh(nodes)
        weights = weights / weights.sum()
        linear = (weights * nodes * values).sum() ** 2 / (weights * values**2).sum()
        seeds = tables["scaling"][["seed"]].drop_duplicates()
        return seeds.assign(value=1.0 - linear)

    return data


LARGE_ENOUGH = Gate("features move by at least 0.1 where r = 0", effect, Bound(lower=0.1), cases=NETWORK)
NONLINEAR = Gate("φ is not linear (Assumption 3.1)", nonlinearity("tanh"), Bound(lower=0.001, every_row=True))
LINEAR = Gate("φ is not linear (Assumption 3.1)", nonlinearity("linear"), Bound(lower=0.001, every_row=True))


CLAIMS = (
    Claim(
        "ABC-1",
        "a_l + θ, b_l − θ and c − 2θ leave f_t unchanged for all t",
        "Sec. 3.2, Eq. (5)",
        Equality(1e-9, every_row=True),
        lambda tables: tables["symmetry"][tables["symmetry"]["variant"].isin(("global", "per layer"))].rename(
            columns={"difference": "value"}
        ),
        (
            Control("learning rate left as it was", identity("c kept"), why="the shift without c − 2θ"),
            Control(
                "learning rate applied to W, not to w",
                identity("rate on W"),
                why="a frequent bug: c acts as if 2a were added",
            ),
        ),
        cases=("depth", "variant"),
        note="Largest relative difference of f on the probes over five steps, in double precision, from the same "
        "normal draws, for rational θ drawn at random.",
    ),
    Claim(
        "ABC-2",
        "A parametrization is stable exactly when h_0 is Θ(1) and no activation, output or update grows with n",
        "Theorem 3.3",
        AGREES,
        lambda tables: side(fastest(tables, (*STABLE, *FAST_SP, *CONTROLS[1:], *PLANE)), unstable, LINE),
        (
            Control(
                "readout condition forgotten",
                lambda tables: side(fastest(tables, ("mup-large-readout",)), lambda *_: False, LINE),
                why="calls μP with b_{L+1} = 0 stable",
            ),
            Control(
                "learning-rate condition forgotten",
                lambda tables: side(fastest(tables, ("sp:1/2",)), lambda *_: False, LINE),
                why="calls SP with learning rate n^(-1/2) stable",
            ),
            Control(
                "NTP called unstable",
                lambda tables: side(fastest(tables, ("ntp",)), lambda *_: True, LINE),
                why="the other side of the line",
            ),
        ),
        cases=NETWORK,
        note="Judged on whichever of h_0, f_0, Δh and Δf grows fastest over two steps: the number is how far its exponent "
        f"lies on the wrong side of {LINE}, so agreement with the theorem is negative. Points of the plane one step inside "
        "the unstable region grow as n^(1/8) by theory, close to that line.",
    ),
    Claim(
        "ABC-3",
        "A stable parametrization moves its function by Θ(1) exactly when a_{L+1} + b_{L+1} + r = 1 or 2a_{L+1} + c = 1",
        "Theorem 3.4",
        Slope(),
        follows("df", 1, STABLE),
        (
            Control(
                "trivial points called nontrivial",
                told("df", 1, TRIVIAL, constant(0.0)),
                why="exponent 0 where theory says −1/2",
            ),
            Control(
                "nontrivial points called trivial",
                told("df", 1, TABLE_1, constant(-0.5)),
                why="exponent −1/2 where theory says 0",
            ),
        ),
        cases=NETWORK,
        note="Exponent of Δf after one step: 0 where the theorem says nontrivial, theory's negative value elsewhere.",
    ),
    Claim(
        "ABC-4",
        "Layer by layer, Δh^l is Θ(n^(−min_{k≤l} r_k))",
        "Definition 3.2; layer by layer from the heuristic of Proposition 5.3",
        Slope(),
        follows("dh", (1, 2), STABLE),
        (
            Control(
                "μP's law told of NTP", told("dh", 1, ("ntp",), same_as("mup", "dh")), why="0 where theory says −1/2"
            ),
            Control(
                "NTP's law told of μP", told("dh", 1, ("mup",), same_as("ntp", "dh")), why="−1/2 where theory says 0"
            ),
            Control("indicator 1[l = 1] forgotten", told("dh", 1, ("mup",), wrong_r), why="r_1 = −1 for μP"),
            Control(
                "one exponent for all layers",
                told("dh", 1, ("mup-flat-input",), same_as("mup", "dh")),
                why="μP with the input layer of SP passes wherever only the last layer is looked at",
            ),
        ),
        cases=(*NETWORK, "layer", "t"),
    ),
    Claim(
        "ABC-5",
        "A nontrivial stable parametrization learns features, and its feature kernel evolves, exactly when r = 0",
        "Theorem 3.6",
        AGREES,
        lambda tables: side(nontrivial(tables, "feature_kernel"), feature_learning, -LINE),
        (
            Control(
                "NTP said to learn features",
                lambda t: side(_only(nontrivial(t, "feature_kernel"), "ntp"), lambda *_: True, -LINE),
            ),
            Control(
                "μP said not to", lambda t: side(_only(nontrivial(t, "feature_kernel"), "mup"), lambda *_: False, -LINE)
            ),
        ),
        cases=NETWORK,
        gates=(LARGE_ENOUGH,),
        note="Exponent of the relative change of F = x^L·x^L/n after four steps, as a distance to −0.10 on the wrong side.",
    ),
    Claim(
        "ABC-6",
        "A nontrivial stable parametrization is in the kernel regime exactly when r > 0: "
        "‖Δf − J_0 δθ‖ / ‖Δf‖ vanishes with n",
        "Theorem 3.8",
        AGREES,
        lambda tables: side(nontrivial(tables, "kernel_residual"), feature_learning, -LINE),
        (
            Control(
                "μP said to be a kernel method",
                lambda t: side(_only(nontrivial(t, "kernel_residual"), "mup"), lambda *_: False, -LINE),
            ),
            Control(
                "NTP said not to be",
                lambda t: side(_only(nontrivial(t, "kernel_residual"), "ntp"), lambda *_: True, -LINE),
            ),
        ),
        cases=NETWORK,
        gates=(LARGE_ENOUGH,),
        note="After four steps, as a distance to −0.10 on the wrong side.",
    ),
    Claim(
        "ABC-6K",
        "In the kernel regime f_t follows kernel gradient descent with the infinite-width NTK, to within n^(−1/2)",
        "Theorem 3.8, with the rate of the fluctuations of the NTK at initialisation (derived)",
        Slope(-0.5),
        kernel_errors("ntk", "ntp"),
        (
            Control("NNGP kernel in its place", kernel_errors("nngp", "ntp"), why="trains the readout alone"),
            Control("μP said to follow it", kernel_errors("ntk", "mup"), why="μP's kernel moves"),
        ),
        note="Relative distance on the probes after the last step, each network's own f_0 put in.",
    ),
    Claim(
        "ABC-7",
        "A nontrivial stable parametrization learns features or is in the kernel regime, never both and never neither",
        "Corollary 3.9",
        Proportion(at_least=0.8),
        dichotomy,
        (
            Control(
                "both at once", lambda tables: dichotomy(tables, both_ways=True), why="asks for both instead of one"
            ),
            Control("neither", lambda tables: _flip(dichotomy(tables)), why="asks for none or both instead of one"),
        ),
        gates=(LARGE_ENOUGH, NONLINEAR),
        note="Share of networks and seeds in exactly one regime, by exponents fitted per seed and a line at −0.10.",
    ),
    Claim(
        "ABC-7L",
        "The dichotomy needs a nonlinear φ: with φ = id and only W^1 trained it cannot be judged",
        "Assumption 3.1 and the counter-example after Corollary 3.9",
        Proportion(at_least=0.8),
        lambda tables: dichotomy(tables, "linear, W1 only"),
        (
            Control("neither", lambda tables: _flip(dichotomy(tables)), why="asks for none or both instead of one"),
            Control(
                "both at once", lambda tables: dichotomy(tables, both_ways=True), why="asks for both instead of one"
            ),
        ),
        gates=(LINEAR,),
        expect="void",
        note="Without the gate the dichotomy would count as refuted here, which says nothing about the theorem.",
    ),
    Claim(
        "ABC-8",
        "f_0 is Θ(n^(1/2 − (a_{L+1} + b_{L+1}))): a feature-learning limit starts from zero",
        "Corollary 3.10",
        Slope(),
        follows("f0", 1, STABLE),
        (
            Control("NTP said to start from zero", told("f0", 1, ("ntp",), same_as("mup", "f0"))),
            Control("μP with a large readout said to", told("f0", 1, ("mup-large-readout",), same_as("mup", "f0"))),
        ),
        cases=NETWORK,
    ),
    Claim(
        "ABC-9",
        "SP with learning rate η n^(−c), 1/2 ≤ c ≤ 1: Δf_1 is Θ(n^(1−c)), so only O(1/n) is stable",
        "Theorem 4.1, Eq. (12)-(13)",
        Slope(),
        follows("df", 1, ("sp", *FAST_SP)),
        (
            Control("every rate said to be stable", told("df", 1, FAST_SP, constant(0.0))),
            Control("half the growth", told("df", 1, ("sp:1/2",), constant(0.25)), why="n^((1−c)/2)"),
        ),
        cases=NETWORK,
    ),
    Claim(
        "ABC-9R",
        "The largest stable learning rate falls as 1/n in SP and does not move with n in NTP and μP",
        "Sec. 4, Fig. 2",
        Slope(band=0.20),
        stable_rates({"sp:0": -1.0, "ntp": 0.0, "mup": 0.0}),
        (
            Control("SP said to fall as n^(−1/2)", stable_rates({"sp:0": -0.5})),
            Control("SP said to have NTP's rate", stable_rates({"sp:0": 0.0})),
            Control("μP said to have SP's rate", stable_rates({"mup": -1.0})),
        ),
        cases=("parametrization",),
        note="Two hidden layers, φ = relu, squared loss on digits, 12 steps, bisection on log2 η. At finite width NTP and SP "
        "stand a larger rate than their kernel limit does, whose value the figure shows: the slope is too steep until it "
        "is reached.",
    ),
    Claim(
        "ABC-10",
        "In μP every layer's own update moves its output by Θ(1), and so do the readout's update and the moved features",
        "Definitions 5.1, 5.2, 5.4, Propositions 5.3, 5.5, Theorem 5.6",
        Slope(0.0),
        lambda tables: contributions(tables, "mup"),
        (
            Control("NTP said to be maximal", lambda tables: contributions(tables, "ntp")),
            Control("μP with the input layer of SP said to be", lambda tables: contributions(tables, "mup-flat-input")),
            Control("μP with a large readout said to be", lambda tables: contributions(tables, "mup-large-readout")),
        ),
        cases=("depth", "quantity", "layer"),
        note="Isolated contributions ΔW^l x^{l−1}, ΔW^{L+1} x^L and W_0^{L+1} Δx^L after two steps.",
    ),
    Claim(
        "ABC-11",
        "With one hidden layer the mean-field parametrization is μP",
        "Sec. 5",
        Equality(1e-9, every_row=True),
        identity("mfp is mup"),
        (
            Control("NTP in its place", identity("ntp is mup")),
            Control("mean field with c = 0", identity("slow mfp is mup"), why="its learning rate must grow with n"),
        ),
    ),
    Claim(
        "ABC-17",
        "UP(r) joins μP to NTP with all layers moving alike: Δh^l is Θ(n^(−r)) for every l",
        "derived from Definition 3.2; not stated in the paper",
        Slope(),
        follows("dh", 1, ("mup", *INTERPOLATION, "ntp")),
        (
            Control("no dependence on r", told("dh", 1, INTERPOLATION[1:], constant(0.0))),
            Control(
                "twice the exponent", told("dh", 1, INTERPOLATION, lambda name, *_: -2 * float(spec_of(name, 1).r()))
            ),
        ),
        cases=(*NETWORK, "layer"),
    ),
    Claim(
        "ABC-LR",
        "In μP the learning rate that trains best does not move with the width",
        "consequence of Theorem 5.6 (derived; what μTransfer relies on)",
        Slope(band=0.20),
        best_rates({"mup": 0.0}),
        (
            Control("SP said to transfer", best_rates({"sp:0": 0.0})),
            Control("μP said to need 1/n", best_rates({"mup": -1.0})),
        ),
        cases=("loss_function", "parametrization"),
        note="Two hidden layers, φ = relu, squared loss and cross entropy on digits, 100 steps; the optimum of each seed "
        "between grid points.",
    ),
    Claim(
        "ABC-LRK",
        "The learning rate that trains best moves as the largest stable one: as 1/n in SP, not at all in NTP",
        "consequence of Theorem 4.1 (derived)",
        Slope(band=0.20),
        best_rates({"sp:0": -1.0, "ntp": 0.0}),
        (
            Control("SP said to transfer", best_rates({"sp:0": 0.0})),
            Control("NTP said to need 1/n", best_rates({"ntp": -1.0})),
        ),
        cases=("loss_function", "parametrization"),
        note="Stability in the theorem means bounded outputs. Cross entropy does not need them: its derivative stays bounded "
        "when logits grow, so training works up to the rate at which the features themselves blow up, n^(−1/2) in SP and "
        "n^(1/2) in NTP (r = 0 in both), and the optimum follows that rate instead.",
    ),
)


def contributions(tables: Tables, name: str) -> pd.DataFrame:
    """Isolated contributions to the activations and to f after two steps."""
    import pandas as pd

    return pd.concat([sizes(tables, quantity, 2, (name,)) for quantity in ("dWx", "dWx_out", "W0dx_out")])


def _only(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame[frame["parametrization"] == name]


def _flip(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(value=1.0 - frame["value"])
