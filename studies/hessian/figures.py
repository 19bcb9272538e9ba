"""The study's figures: points with intervals are measured, lines are what theory, or an estimator, says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from assay import Figure
from studies.hessian.clusters import BLOB_STEPS, DRAWS
from studies.hessian.frames import DETECTORS, LAST, kind, ranked
from studies.hessian.networks import CLASSES
from studies.hessian.trials import FINAL, LANCZOS_STEPS, LATE, PATHS, PROBES, RANKS

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from assay.results import Tables


def _by_rank(frame: pd.DataFrame, column: str, ranks: Sequence[int], keys: list[str]) -> pd.DataFrame:
    """Points of λ_j against j from a column of lists, positive ones only."""
    from assay import charts

    rows = frame[[*keys, "seed", column]].explode(column, ignore_index=True)
    rows["rank"] = frame[column].map(lambda top: list(range(1, len(top) + 1))).explode(ignore_index=True).astype(int)
    rows[column] = rows[column].astype(float)
    rows = rows[rows["rank"].isin(ranks) & (rows[column] > 0)]
    return charts.summarise(rows, [*keys, "rank"], column, "seed")


def _named(frame: pd.DataFrame, column: str, names: dict) -> pd.DataFrame:
    """Give the levels of a column the names a reader sees, in the order of the mapping."""
    import pandas as pd

    return frame.assign(**{column: pd.Categorical(frame[column].map(names), list(names.values()))})


def widths(tables: Tables) -> alt.TopLevelMixin:
    """The upper end of the spectrum at each width."""
    from assay import charts

    frame = kind(tables, "ends")
    points = _by_rank(frame, "top", [*range(1, 13), *range(14, 40, 2), *range(40, 161, 10)], ["width"])
    return charts.scaling(
        _named(points, "width", {n: f"n = {n}" for n in sorted(points["width"].unique())}),
        x="rank",
        color="width",
        x_title="rank j",
        y_title="eigenvalue λ_j of H",
        color_title="width",
        title="The upper end of the spectrum, by width",
        subtitle=f"One hidden layer, φ = relu, cross entropy, {FINAL} steps of gradient descent on the same {frame['examples'].iloc[0]} "
        "examples.",
    )


def clusters(tables: Tables) -> alt.TopLevelMixin:
    """The upper end of the spectrum for each number of clusters."""
    from assay import charts

    frame = tables.part("clusters", t=BLOB_STEPS, activation="relu", labels="classes")
    points = _by_rank(frame, "top", range(1, 41), ["clusters", "centres"])
    points = _named(points, "centres", {"random": "random centres", "orthogonal": "orthogonal centres"})
    return charts.scaling(
        _named(points, "clusters", {k: f"k = {k}" for k in sorted(points["clusters"].unique())}),
        x="rank",
        color="clusters",
        facet="centres",
        x_title="rank j",
        y_title="eigenvalue λ_j of H",
        color_title="clusters",
        title="The upper end of the spectrum, by number of classes",
        subtitle=f"Networks 100-30-30-k, φ = relu, after {BLOB_STEPS} steps of gradient descent.",
        width=310,
        height=270,
    )


NAMES = {"ratio": "largest ratio", "class_edge": "above λ_1(H − G_class)", "gap": "largest gap", "elbow": "elbow"}


def counts(tables: Tables) -> alt.TopLevelMixin:
    """What each detector counts, against the number of clusters."""
    import pandas as pd

    from assay import charts

    frame = tables.part("clusters", t=BLOB_STEPS, activation="relu", labels="classes")
    read = pd.concat([frame.assign(count=frame[name].astype(float), detector=name) for name in NAMES])
    points = charts.summarise(read, ["clusters", "centres", "detector"], "count", "seed", log=False)
    points = _named(points, "centres", {"random": "random centres", "orthogonal": "orthogonal centres"})
    ks = sorted(frame["clusters"].unique())
    return charts.scaling(
        _named(points, "detector", NAMES),
        pd.DataFrame({"clusters": ks, "value": [float(k) for k in ks]}),
        x="clusters",
        color="detector",
        facet="centres",
        x_title="number of clusters k",
        y_title="number of outliers",
        color_title="detector",
        title="As many outliers as classes?",
        subtitle="Line: n_out = k. The first two detectors decide; the second can never exceed k.",
        log_x=False,
        log_y=False,
        width=310,
        height=270,
    )


def resamples(tables: Tables) -> alt.TopLevelMixin:
    """Counts of the deciding detectors over resampled examples, as shares of all draws."""
    import pandas as pd

    from assay import charts

    frame = tables["resamples"]
    far = {-2: "k − 2 and less", -1: "k − 1", 0: "k", 1: "k + 1", 2: "k + 2 and more"}
    rows = []
    for name in DETECTORS:
        drawn = frame[["clusters", name]].explode(name)
        off = (drawn[name].astype(int) - drawn["clusters"]).clip(-2, 2)
        shares = off.groupby(drawn["clusters"]).value_counts(normalize=True).unstack(fill_value=0)
        for k, row in shares.iterrows():
            rows += [(f"k = {k}, {NAMES[name]}", far[d], float(row.get(d, 0.0))) for d in far]
    cells = pd.DataFrame(rows, columns=["network", "count", "share"])
    cells = _named(cells, "count", {name: name for name in reversed(far.values())})
    return charts.heatmap(
        _named(cells, "network", {name: name for name in cells["network"].unique()}),
        x="network",
        y="count",
        value="share",
        x_title="number of clusters and detector",
        y_title="number of outliers",
        value_title="share of draws",
        title="How sure is one network of its count?",
        subtitle=f"Share of {DRAWS} data sets drawn with replacement, over {frame['seed'].nunique()} networks; outliers of G.",
        height=240,
    )


def time_law(tables: Tables) -> alt.TopLevelMixin:
    """λ_1 and λ_k against training time."""
    import numpy as np
    import pandas as pd

    from assay import charts

    panels = {"xent": "cross entropy", "mse": "squared loss"}
    frame = pd.concat([ranked(kind(tables, "widths", (loss, 1, "relu")), (1, CLASSES)) for loss in panels])
    frame = frame.assign(series=[f"{what}, n = {n}" for what, n in zip(frame["what"], frame["width"], strict=True)])
    frame = frame[frame["width"].isin((20, 80))]
    points = charts.summarise(frame, ["series", "loss_function", "eta_t"], "value", "seed")
    points = _named(points, "loss_function", panels)
    lines = []
    for series, own in points[points["loss_function"] == panels["xent"]].groupby("series"):
        x, y = own["eta_t"].to_numpy(), own["value"].to_numpy()
        height = np.exp(np.mean(np.log(y * x)))
        lines.append(pd.DataFrame({"series": series, "loss_function": panels["xent"], "eta_t": x, "value": height / x}))
    return charts.scaling(
        points,
        pd.concat(lines),
        x="eta_t",
        color="series",
        facet="loss_function",
        x_title="training time η t",
        y_title="eigenvalue of H",
        color_title="",
        title="Do outliers fade as 1/(η t)?",
        subtitle="Digits, one hidden layer, φ = relu. Lines: slope −1 at fitted height, the law of cross entropy; under the squared loss there is none.",
        width=310,
        height=270,
    )


def gauss_newton(tables: Tables) -> alt.TopLevelMixin:
    """Eigenvalues of H against those of its two candidates for a first term."""
    import pandas as pd

    from assay import charts

    parts = {"top_g": "Gauss-Newton G at the logits", "top_fisher": "empirical Fisher"}
    frame = tables.part("exact", t=LAST, activation="relu")
    frame = frame[frame["width"] == frame["width"].max()]
    of_h = _by_rank(frame, "top_h", range(1, CLASSES + 1), ["width"])
    rows = []
    for column, name in parts.items():
        of_part = _by_rank(frame, column, range(1, CLASSES + 1), ["width"])[["rank", "value"]]
        rows.append(of_h.merge(of_part.rename(columns={"value": "prediction"}), on="rank").assign(part=name))
    return charts.parity(
        pd.concat(rows),
        color="part",
        log=True,
        x_title="eigenvalue λ_j of the part",
        y_title="eigenvalue λ_j of H",
        color_title="",
        title="What stands for H at the end of training",
        subtitle=f"The {CLASSES} largest eigenvalues after {LAST} steps, n = {int(frame['width'].iloc[0])}, φ = relu, digits.",
    )


def gauss_newton_error(tables: Tables) -> alt.TopLevelMixin:
    """How far the k largest eigenvalues of H are from those of G and of the empirical Fisher, over training."""
    import pandas as pd

    from assay import charts

    parts = {"ggn_error": "Gauss-Newton G at the logits", "fisher_error": "empirical Fisher"}
    frame = tables["exact"]
    rows = pd.concat([frame.assign(value=frame[column], part=name) for column, name in parts.items()])
    rows["panel"] = [f"φ = {phi}, n = {n}" for phi, n in zip(rows["activation"], rows["width"], strict=True)]
    panels = rows.sort_values(["activation", "width"])["panel"].unique()
    points = charts.summarise(rows, ["panel", "part", "t"], "value", "seed")
    points = _named(points, "panel", {panel: panel for panel in panels})
    bound = pd.DataFrame({"t": sorted(points["t"].unique()), "value": 0.05})
    return charts.scaling(
        points,
        bound,
        x="t",
        color="part",
        facet="panel",
        x_title="steps",
        y_title="largest relative difference from H",
        color_title="",
        title="How far H is from its candidates for a first term",
        subtitle=f"Over the {CLASSES} largest eigenvalues. Line: the 5 % of the claim.",
        log_x=False,
        height=150,
    )


def negative_edge(tables: Tables) -> alt.TopLevelMixin:
    """|λ_min|/λ_1 over training."""
    import pandas as pd

    from assay import charts

    frame = tables["exact"]
    frame = frame.assign(value=-frame["lowest_h"], panel="φ = " + frame["activation"])
    points = charts.summarise(frame, ["panel", "width", "t"], "value", "seed")
    points = _named(points, "width", {n: f"n = {n}" for n in sorted(points["width"].unique())})
    return charts.scaling(
        points,
        pd.DataFrame({"t": sorted(points["t"].unique()), "value": 0.02}),
        x="t",
        color="width",
        facet="panel",
        x_title="steps",
        y_title="|λ_min| / λ_1",
        color_title="width",
        title="The lowest eigenvalue, in units of the largest",
        subtitle="Line: the 2 % of the claim.",
        log_x=False,
        width=310,
        height=240,
    )


def negative_share(tables: Tables) -> alt.TopLevelMixin:
    """Share of negative eigenvalues against the number of parameters, with two thresholds."""
    import pandas as pd

    from assay import charts

    thresholds = {"negative": "below −1e-6 λ_1", "clearly_negative": "below −1e-3 λ_1"}
    frame = tables.part("exact", t=LAST)
    rows = pd.concat([frame.assign(value=frame[column], threshold=name) for column, name in thresholds.items()])
    rows["panel"] = "φ = " + rows["activation"]
    points = charts.summarise(rows, ["panel", "threshold", "parameters"], "value", "seed")
    centres = points.groupby(["panel", "threshold"])["value"].transform("mean")
    return charts.scaling(
        _named(points, "threshold", {name: name for name in thresholds.values()}),
        _named(points.assign(value=centres)[["panel", "threshold", "parameters", "value"]], "threshold",
               {name: name for name in thresholds.values()}),
        x="parameters",
        color="threshold",
        facet="panel",
        x_title="parameters M",
        y_title="share of negative eigenvalues",
        color_title="",
        title="Is the share of negative eigenvalues independent of the width?",
        subtitle=f"After {LAST} steps. Lines: constant, at fitted height.",
        width=310,
        height=240,
    )  # fmt: skip


BIN, SMOOTHING = 0.25, 0.12
"""Width of a bin of the histogram and of the Gaussian that smooths the quadrature, in decades."""
LOWEST_SHOWN, FEWEST = 1e-5, 0.1
"""Share of λ_1, and eigenvalues per decade, below which nothing is drawn: so near to zero the quadrature resolves nothing."""


def density(tables: Tables) -> alt.TopLevelMixin:
    """Density of positive and of negative eigenvalues, whole spectrum against stochastic Lanczos quadrature."""
    import numpy as np
    import pandas as pd
    from scipy.stats import t

    from assay import charts
    from theory.curvature import outliers

    row = tables["density"].iloc[0]
    eigenvalues, nodes, weights = (np.array(row[name]) for name in ("eigenvalues", "nodes", "weights"))
    nodes, weights = nodes.reshape(PROBES, -1), weights.reshape(PROBES, -1)
    M, floor = len(eigenvalues), LOWEST_SHOWN * eigenvalues.max()
    samples = row["examples"] * (CLASSES - 1)  # rows of the root of G that are independent
    beyond = int(outliers.class_edge(eigenvalues, outliers.marchenko_pastur_edge(eigenvalues, M / samples)))
    edges = np.arange(np.log10(floor), np.log10(eigenvalues.max()) + 2 * BIN, BIN)
    middle = (edges[:-1] + edges[1:]) / 2
    points, lines = [], []
    for sign, panel in ((1, "positive eigenvalues"), (-1, "negative eigenvalues")):
        counts = np.histogram(np.log10(np.maximum(sign * eigenvalues, floor / 10)), edges)[0]
        points.append(pd.DataFrame({"x": 10**middle, "value": counts / BIN, "panel": panel})[counts > 0])
        at = np.log10(np.maximum(sign * nodes, floor / 10))
        kernel = np.exp(-0.5 * ((middle[:, None, None] - at) / SMOOTHING) ** 2) / (SMOOTHING * np.sqrt(2 * np.pi))
        each = M * (kernel * weights * (at > np.log10(floor))).sum(-1)  # [grid, probes]
        mean, half = each.mean(1), t.ppf(0.975, PROBES - 1) * each.std(1, ddof=1) / np.sqrt(PROBES)
        line = pd.DataFrame(
            {"x": 10**middle, "value": mean, "low": np.maximum(mean - half, FEWEST), "high": mean + half}
        )
        lines.append(line[line["value"] > FEWEST].assign(panel=panel))
    hidden = int((np.abs(eigenvalues) < floor).sum())
    return charts.scaling(
        pd.concat(points),
        pd.concat(lines),
        x="x",
        facet="panel",
        x_title="|λ|",
        y_title="eigenvalues per decade",
        title="The whole spectrum, counted and estimated",
        subtitle=f"Points: histogram of the {M} eigenvalues of H, trained on digits, but for {hidden} below {LOWEST_SHOWN:.0e} λ_1 in size. "
        f"Line and band: stochastic Lanczos quadrature, {PROBES} probes of {LANCZOS_STEPS} steps, smoothed over {SMOOTHING} decades. "
        f"The bulk is heavy-tailed: {beyond} eigenvalues lie beyond the edge of the Marchenko-Pastur law with its median.",
        width=310,
        height=260,
    )


ROUNDING = 1e-14
"""Share of λ_1 below which an eigenvalue is rounding error."""


def spread(tables: Tables) -> alt.TopLevelMixin:
    """Whole spectra against the share of the rank."""
    import numpy as np

    from assay import charts

    frame = tables.part("exact", t=LAST, activation="relu")
    rows = frame[["width", "seed", "spread_h"]].explode("spread_h", ignore_index=True)
    rows["share"] = np.tile(np.linspace(0, 100, RANKS), len(frame))
    rows["value"] = rows["spread_h"].astype(float)
    largest = rows.groupby(["width", "seed"])["value"].transform("max")
    rows = rows[(rows["value"] > ROUNDING * largest) & (rows["share"].round() % 2 == 0)]
    points = charts.summarise(rows, ["width", "share"], "value", "seed")
    return charts.scaling(
        _named(points, "width", {n: f"n = {n}" for n in sorted(points["width"].unique())}),
        x="share",
        color="width",
        x_title="rank, in per cent of M",
        y_title="eigenvalue of H",
        color_title="width",
        title="The whole positive spectrum, by width",
        subtitle=f"One hidden layer, φ = relu, digits, after {LAST} steps. Mean over the seeds whose eigenvalue is above {ROUNDING:g} λ_1; the rest is zero up to rounding, or negative.",
        log_x=False,
    )


def separability(tables: Tables) -> alt.TopLevelMixin:
    """λ_1 against the standard deviation of two blobs."""
    from assay import charts

    frame = tables["separability"]
    frame = frame.assign(value=[top[0] for top in frame["top"]])
    points = charts.summarise(frame, ["width", "std"], "value", "seed")
    return charts.scaling(
        _named(points, "width", {n: f"2-{n}-{n}-2" for n in sorted(points["width"].unique())}),
        x="std",
        color="width",
        x_title="standard deviation of each blob",
        y_title="largest eigenvalue λ_1 of H",
        color_title="network",
        title="λ_1 against how hard the data are to separate",
        subtitle="Two Gaussian blobs at ±(1, 1), 100 points, 3000 steps of gradient descent.",
    )


ARMS = {"large": "batches of 256", "small": "batches of 10"}


def batch_spectra(tables: Tables) -> alt.TopLevelMixin:
    """The upper end of the spectrum after training with large and with small batches."""
    from assay import charts

    frame = tables["batches"]
    points = _by_rank(frame[frame["t"].isin(LATE)], "top", range(1, 31), ["arm"])
    return charts.scaling(
        _named(points, "arm", ARMS),
        x="rank",
        color="arm",
        x_title="rank j",
        y_title="eigenvalue λ_j of H",
        color_title="",
        title="Outliers after training with large and with small batches",
        subtitle="Digits, 64-20-10, φ = relu, 2000 steps of one size from the same start; mean over the last five snapshots.",
    )


def lines(tables: Tables) -> alt.TopLevelMixin:
    """Training loss along the lines that join solutions."""
    from assay import charts

    names = {
        "continued": "small batches from there on",
        "same start": "small batches from the start",
        "other start": "another start",
        "permuted": "first, hidden units reordered",
    }
    frame = tables["lines"]
    points = charts.summarise(frame, ["path", "alpha"], "loss", "seed")
    return charts.scaling(
        _named(points, "path", {path: names[path] for path in PATHS}),
        x="alpha",
        color="path",
        x_title="α: from the large-batch end (0) to the other end (1)",
        y_title="training loss (nats)",
        color_title="",
        title="Is there a barrier between the ends of large- and small-batch training?",
        subtitle="Straight lines in weight space from the end of large-batch training to other ends; digits, 64-20-10.",
        log_x=False,
    )


def spikes(tables: Tables) -> alt.TopLevelMixin:
    """The largest sample eigenvalue against the spike."""
    import numpy as np
    import pandas as pd

    from assay import charts
    from theory.curvature import bbp_eigenvalue

    frame = tables["spikes"]
    frame = frame.assign(panel=[f"α = {m / n:g}" for m, n in zip(frame["dimensions"], frame["examples"], strict=True)])
    points = charts.summarise(frame, ["panel", "spike"], "largest", "seed", log=False)
    grid = np.linspace(frame["spike"].min(), frame["spike"].max(), 101)
    theory = [
        pd.DataFrame({"panel": panel, "spike": grid, "value": [bbp_eigenvalue(s, float(panel[4:])) for s in grid]})
        for panel in points["panel"].unique()
    ]
    return charts.scaling(
        points,
        pd.concat(theory),
        x="spike",
        facet="panel",
        x_title="spike ℓ of the population covariance",
        y_title="largest sample eigenvalue",
        title="When a spike becomes an outlier",
        subtitle="Line: ℓ(1 + α/(ℓ − 1)) above ℓ = 1 + √α, the edge (1 + √α)² below; α = M/N.",
        log_x=False,
        log_y=False,
        width=310,
        height=260,
    )


FIGURES = (
    Figure("widths", "Spectra across widths", "The upper end of the spectrum does not know how many parameters there are.",
           widths, ("HES-1", "HES-3", "HES-3B")),
    Figure("clusters", "Spectra across numbers of classes", "With k classes k eigenvalues stand out, until a second tier "
           "of k(k − 2) reaches up to them.", clusters, ("HES-2", "HES-2K")),
    Figure("counts", "Counting outliers", "Four detectors on the same spectra.", counts, ("HES-2", "HES-2B", "HES-2K")),
    Figure("resamples", "The counts of resampled examples", "The network stays as it is, its examples are drawn again.",
           resamples, ("HES-2",)),
    Figure("time_law", "The law of time", "Outliers are not a property of an end point.", time_law, ("HES-T", "HES-3")),
    Figure("density", "Density of the whole spectrum", "Stochastic Lanczos quadrature needs products with H only.",
           density, ("HES-1",)),
    Figure("spread", "The bulk across widths", "Against the share of the rank: how the bulk scales.",
           spread, ("HES-3B", "HES-6F")),
    Figure("gauss_newton", "H and its first term", "Each point is one eigenvalue.", gauss_newton, ("HES-5", "HES-5L")),
    Figure("gauss_newton_error", "H and its first term over training", "The approximation is one near a minimum.",
           gauss_newton_error, ("HES-5", "HES-5-tanh", "HES-5I", "HES-5L")),
    Figure("negative_edge", "The negative edge", "The lowest eigenvalue, in units of the largest.",
           negative_edge, ("HES-6", "HES-6-tanh", "HES-6T")),
    Figure("negative_share", "How many are negative", "What counts as negative decides.",
           negative_share, ("HES-6F", "HES-6F-tanh")),
    Figure("separability", "Separability", "Same networks, same training.", separability, ("HES-4", "HES-4N")),
    Figure("batch_spectra", "Large and small batches", "The same start and as many steps.",
           batch_spectra, ("HES-7", "HES-7N")),
    Figure("lines", "Lines between solutions", "Independent starts show what a barrier looks like; so does the same "
           "function with its hidden units reordered.", lines, ("HES-8",)),
    Figure("spikes", "The transition of the largest eigenvalue", "Sample covariance matrices of Gaussian data with one "
           "spike.", spikes, ("HES-9", "HES-9E")),
)  # fmt: skip
