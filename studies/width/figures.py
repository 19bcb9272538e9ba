"""The study's figures: points with intervals are trained networks, lines are the paper's exponents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from assay import Figure
from studies.width.frames import LINE, kernel_names, optima, sizes, slopes
from studies.width.parametrizations import INTERPOLATION, PLANE, label, predicted
from studies.width.trials import RATE_NETWORKS

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from assay.results import Tables

SHOWN = ("mup", "up:1/4", "ntp", "sp", "mup-flat-input")


def _named(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Put pretty names on the parametrizations, in the given order."""
    import pandas as pd

    frame = frame.assign(network=pd.Categorical(frame["parametrization"].map(label), [label(name) for name in names]))
    return frame.sort_values("network")


def _guides(points: pd.DataFrame, keys: list[str], exponent: Callable[[dict], float]) -> pd.DataFrame:
    """Lines of the predicted slope through the geometric mean of each series: theory says nothing about the constant."""
    import numpy as np
    import pandas as pd

    lines = []
    for key, series in points.groupby(keys, observed=True):
        x, y = series["x"].to_numpy(dtype=float), series["value"].to_numpy(dtype=float)
        usable = np.isfinite(y) & (y > 0)
        if not usable.any():
            continue
        labels: dict[str, Any] = dict(zip(keys, key, strict=True))
        centre = np.log(y[usable]).mean() - exponent(labels) * np.log(x[usable]).mean()
        lines.append(pd.DataFrame({"x": x, "value": np.exp(centre) * x ** exponent(labels)}).assign(**labels))
    return pd.concat(lines)


def coordinate_check(tables: Tables) -> alt.TopLevelMixin:
    """Δh^l and Δf after one step against width, per layer."""
    import pandas as pd

    from assay import charts

    panels = [("dh", 1, "Δh¹, first hidden layer"), ("dh", 2, "Δh², second hidden layer"), ("df", 3, "Δf, output")]
    frames = []
    for quantity, layer, panel in panels:
        frame = sizes(tables, quantity, 1, SHOWN)
        frame = frame[(frame["depth"] == 2) & (frame["layer"] == layer)]
        frames.append(frame.assign(panel=panel, key=f"{quantity}{layer}"))
    frame = pd.concat(frames)
    frame["panel"] = pd.Categorical(frame["panel"], [panel for *_, panel in panels])
    points = charts.summarise(frame, ["parametrization", "panel", "x"], "value", "seed")
    where = {panel: (quantity, layer) for quantity, layer, panel in panels}

    def exponent(labels: dict) -> float:
        quantity, layer = where[labels["panel"]]
        return predicted(quantity, labels["parametrization"], 2, layer, 1)

    lines = _guides(points, ["parametrization", "panel"], exponent)
    return charts.scaling(
        _named(points, SHOWN),
        _named(lines, SHOWN),
        x="x",
        color="network",
        facet="panel",
        x_title="width n",
        y_title="root-mean-square change after one step",
        color_title="parametrization",
        title="How far each layer moves, against width",
        subtitle="Two hidden layers, φ = tanh, loss −Σ y f on digits. Lines have theory's exponent; their height is fitted.",
        width=230,
        height=260,
    )


def phase_diagram(tables: Tables) -> alt.TopLevelMixin:
    """Measured r over the plane of readout and hidden exponents, with the edge of stability.

    After two steps: the first moves the hidden layers through W_0^{L+1} alone, and where they blow up it saturates φ.
    """
    import pandas as pd

    from assay import charts

    moved = slopes(sizes(tables, "dh", 2, PLANE).query("layer == 2"))
    measured = moved.groupby("parametrization", as_index=False)["slope"].mean()
    point = measured["parametrization"].str.removeprefix("plane:").str.split(",", expand=True)
    cells = pd.DataFrame(
        {
            "A": [_decimal(text) for text in point[0]],
            "rho": [_decimal(text) for text in point[1]],
            "r": -measured["slope"],
        }
    )
    edge = pd.DataFrame({"A": [0.5, 1.0, 1.125], "rho": [0.5, 0.0, 0.0]})
    return charts.heatmap(
        cells,
        edge,
        x="A",
        y="rho",
        value="r",
        x_title="A = a + b of the readout: the exponent of its size",
        y_title="ρ = a of the hidden layers: the exponent of their learning rate",
        value_title="measured r",
        title="Phase diagram: μP sits where the edge of stability meets r = 0",
        subtitle="Measured r = −slope of Δh² after two steps. Below the line theory says unstable; on it are UP(r), from NTP "
        "(top left) to μP (A = 1, ρ = 0). Features are learned on the horizontal part, above it the kernel regime.",
        center=0.0,
    )


def _decimal(text: str) -> float:
    from fractions import Fraction

    return float(Fraction(text))


def exponents(tables: Tables) -> alt.TopLevelMixin:
    """Measured against predicted exponents of Δh^l, over every stable network of the study."""
    import numpy as np

    from assay import charts

    names = {name for depth in (1, 2) for name in kernel_names(depth)} | {"mup-flat-input"}
    names.discard("mup-zero-readout")  # its hidden layers do not move in the first step
    keys = ["depth", "parametrization", "layer"]
    fitted = slopes(sizes(tables, "dh", 1, tuple(names)), keys)
    points = charts.summarise(fitted, keys, "slope", "seed", log=False)
    points["prediction"] = [
        predicted("dh", name, depth, layer, 1) for depth, name, layer in points[keys].itertuples(index=False)
    ]
    points["kind"] = np.where(
        points["parametrization"].str.startswith("plane"), "points of the plane", "named parametrizations"
    )
    return charts.parity(
        points,
        color="kind",
        margin=LINE,
        x_title="predicted exponent of Δh^l, −min_{k≤l} r_k",
        y_title="measured exponent of Δh^l",
        color_title="",
        title="Exponents of feature movement: measured against predicted",
        subtitle="One point per network and layer, after one step; one and two hidden layers.",
    )


def dichotomy(tables: Tables) -> alt.TopLevelMixin:
    """Feature-kernel change and linearisation residual against width, side by side."""
    import pandas as pd

    from assay import charts

    names = ("mup", *INTERPOLATION, "ntp")
    panels = {"feature_kernel": "change of the feature kernel", "kernel_residual": "residual of the linearisation"}
    frames = []
    for quantity, panel in panels.items():
        frame = sizes(tables, quantity, 4, names)
        frames.append(frame[frame["depth"] == 1].assign(panel=panel))
    frame = pd.concat(frames)
    frame["panel"] = pd.Categorical(frame["panel"], list(panels.values()))
    points = charts.summarise(frame, ["parametrization", "panel", "x"], "value", "seed")
    quantities = {panel: quantity for quantity, panel in panels.items()}

    def exponent(labels: dict) -> float:
        quantity = quantities[labels["panel"]]
        return predicted(quantity, labels["parametrization"], 1, 1 if quantity == "feature_kernel" else 2, 4)

    lines = _guides(points, ["parametrization", "panel"], exponent)
    return charts.scaling(
        _named(points, names),
        _named(lines, names),
        x="x",
        color="network",
        facet="panel",
        x_title="width n",
        y_title="relative size after four steps",
        color_title="parametrization",
        title="Feature learning or kernel regime, never both",
        subtitle="One hidden layer, φ = tanh. Theory (derived): slope −2r for 0 ≤ r ≤ 1/2.",
        width=300,
        height=270,
    )


def stability(tables: Tables) -> alt.TopLevelMixin:
    """Largest stable learning rate against width, and that of the infinitely wide NTP network."""
    import numpy as np
    import pandas as pd

    from assay import charts

    frame = tables["stability"].rename(columns={"width": "x", "max_eta": "value"})
    points = charts.summarise(frame, ["parametrization", "x"], "value", "seed")
    guided = points[points["parametrization"] != "ntp"]
    lines = _guides(guided, ["parametrization"], lambda labels: -1.0 if labels["parametrization"] == "sp:0" else 0.0)
    limit = float(np.exp(np.log(tables["kernel_stability"]["max_eta"]).mean()))
    exact = pd.DataFrame({"x": sorted(points["x"].unique()), "value": limit, "parametrization": "ntp"})
    return charts.scaling(
        _named(points, RATE_NETWORKS),
        _named(pd.concat([lines, exact]), RATE_NETWORKS),
        x="x",
        color="network",
        x_title="width n",
        y_title="largest stable learning rate η",
        color_title="parametrization",
        title="The largest stable learning rate",
        subtitle="Two hidden layers, φ = relu, squared loss on digits. Lines: 1/n in SP and constant in μP, at fitted height; "
        f"NTP: {limit:.1f}, computed at infinite width from the NTK.",
    )


SPREAD = 30
LOSSES = {"mse": "squared loss", "xent": "cross entropy"}


def transfer(tables: Tables) -> alt.TopLevelMixin:
    """Training loss against learning rate, one curve per width."""
    import pandas as pd

    from assay import charts

    frame = tables["transfer"]
    panels = {
        (loss, name): f"{label(name)}, {LOSSES[loss]}" for loss in ("xent", "mse") for name in ("mup", "ntp", "sp:0")
    }
    frame = frame.assign(
        eta=2.0 ** frame["log2_eta"],
        size=frame["width"].map(lambda n: f"n = {n}"),
        panel=[panels[key] for key in zip(frame["loss_function"], frame["parametrization"], strict=True)],
    )
    frame["size"] = pd.Categorical(frame["size"], [f"n = {n}" for n in sorted(frame["width"].unique())])
    frame["panel"] = pd.Categorical(frame["panel"], list(panels.values()))
    points = charts.summarise(frame, ["panel", "size", "eta"], "loss", "seed")
    return charts.scaling(
        points[(points["diverged"] == 0) & (points["high"] < SPREAD * points["low"])],
        x="eta",
        color="size",
        facet="panel",
        x_title="learning rate η",
        y_title="training loss",
        color_title="width",
        title="Which learning rate trains best, at each width",
        subtitle="Two hidden layers, φ = relu, digits, 100 steps; nats, or half the squared error. Left out: rates at which a seed diverged, or at which the "
        f"interval spans more than a factor of {SPREAD}.",
        shared_y=False,
        width=230,
        height=200,
    )


def optimum(tables: Tables) -> alt.TopLevelMixin:
    """Best learning rate against width."""
    import pandas as pd

    from assay import charts

    frame = optima(tables)
    frame = frame.assign(panel=pd.Categorical(frame["loss_function"].map(LOSSES), list(LOSSES.values())))
    keys = ["parametrization", "panel"]
    points = charts.summarise(frame, [*keys, "x"], "value", "seed")
    lines = _guides(points, keys, lambda labels: -1.0 if labels["parametrization"] == "sp:0" else 0.0)
    return charts.scaling(
        _named(points, RATE_NETWORKS),
        _named(lines, RATE_NETWORKS),
        x="x",
        color="network",
        facet="panel",
        x_title="width n",
        y_title="best learning rate η",
        color_title="parametrization",
        title="Learning-rate transfer: tune narrow, train wide",
        subtitle="Lines: the exponent of the largest stable rate, at fitted height. Under cross entropy outputs may grow, "
        "and NTP and SP train best beyond that rate.",
        width=300,
        height=270,
    )


def kernel_descent(tables: Tables) -> alt.TopLevelMixin:
    """Distance between networks and their kernel predictions against width."""
    import pandas as pd

    from assay import charts

    names = {"ntk": "NTK recursion", "nngp": "NNGP recursion"}
    frame = tables["kernel"].rename(columns={"width": "x"})
    frame = frame[frame["quantity"].isin(names)]
    frame = frame.assign(panel=pd.Categorical(frame["quantity"].map(names), list(names.values())))
    points = charts.summarise(frame, ["parametrization", "panel", "x"], "value", "seed")
    follows = points[(points["parametrization"] == "ntp") & (points["panel"] == names["ntk"])]
    lines = _guides(follows, ["parametrization", "panel"], lambda labels: -0.5)
    lines["panel"] = pd.Categorical(lines["panel"], list(names.values()))
    return charts.scaling(
        _named(points, ("ntp", "mup")),
        _named(lines, ("ntp", "mup")),
        x="x",
        color="network",
        facet="panel",
        x_title="width n",
        y_title="relative distance of f from the recursion",
        color_title="parametrization",
        title="NTP follows kernel gradient descent, μP does not",
        subtitle="Two hidden layers, φ = relu, squared loss on digits; line: n^(−1/2).",
        width=300,
        height=260,
    )


FIGURES = (
    Figure("coordinate_check", "Coordinate check", "Root-mean-square change of each layer after one step. Under μP "
           "every layer moves alike at every width; elsewhere some layer freezes as the network grows.",
           coordinate_check, ("ABC-3", "ABC-4", "ABC-10")),
    Figure("phase_diagram", "Phase diagram", "Each cell is a parametrization; its number is the measured r.",
           phase_diagram, ("ABC-2", "ABC-5", "ABC-6", "ABC-7")),
    Figure("exponents", "All exponents at once", "Every stable nontrivial parametrization of the study.",
           exponents, ("ABC-4", "ABC-17")),
    Figure("dichotomy", "Feature learning against the kernel regime", "Where the feature kernel keeps changing, the "
           "linearisation at initialisation fails; where it freezes, the linearisation becomes exact.",
           dichotomy, ("ABC-5", "ABC-6", "ABC-7")),
    Figure("kernel_descent", "Kernel gradient descent", "Each network against the recursion of the infinite-width "
           "kernel, started from its own f_0.", kernel_descent, ("ABC-6K",)),
    Figure("stability", "Learning-rate stability", "Found by bisection for every network and seed.",
           stability, ("ABC-9R",)),
    Figure("transfer", "Loss against learning rate", "In μP the minimum stays where it is as the width grows.",
           transfer, ("ABC-LR", "ABC-LRK")),
    Figure("optimum", "Learning-rate transfer", "The optimum of each seed, interpolated between grid points.",
           optimum, ("ABC-LR", "ABC-LRK")),
)  # fmt: skip
