"""From the study's tables to the frames that claims are judged on and figures drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from studies.hessian.clusters import BLOB_STEPS, BLOB_WIDTH, blob_sizes
from studies.hessian.networks import CLASSES, parameters
from studies.hessian.trials import EARLY, EXACT_STEPS, FINAL, LATE

if TYPE_CHECKING:
    import pandas as pd

    from assay.results import Tables

Data = Callable[["Tables"], "pd.DataFrame"]

NARROWEST = 2 * CLASSES
"""Networks narrower than twice the number of classes are bottlenecks and left out of comparisons between widths."""


# --- Width ------------------------------------------------------------------------------------------------------------

USUAL = ("xent", 1, "relu")
"""Loss, number of hidden layers and activation of the networks that the papers study."""


def kind(tables: Tables, table: str, one: tuple[str, int, str] = USUAL) -> pd.DataFrame:
    """Networks of one kind that are wide enough to be compared, with M as x."""
    loss, depth, activation = one
    frame = tables.part(table, loss_function=loss, depth=depth, activation=activation)
    return frame[frame["width"] >= NARROWEST].rename(columns={"parameters": "x"})


def ranked(frame: pd.DataFrame, ranks: Sequence[int] = (1, CLASSES, 2 * CLASSES)) -> pd.DataFrame:
    """Eigenvalues of the given ranks as rows: column value, and `what` says which."""
    import pandas as pd

    return pd.concat([frame.assign(value=[top[j - 1] for top in frame["top"]], what=f"λ_{j}") for j in ranks])


def numbered(frame: pd.DataFrame, tau: float = 0.01) -> pd.DataFrame:
    """#{λ_j > τ λ_1} as the value; NaN where the eigenvalues recorded do not reach down to it."""
    import numpy as np

    from theory.curvature import outliers

    found = [(int(outliers.above(top, tau)), len(top)) for top in frame["top"]]
    return frame.assign(value=[np.nan if number == known else float(number) for number, known in found])


def wide(*kinds: tuple[str, int, str]) -> Data:
    """What should not move with the width: three eigenvalues and a number of them, after equally many steps."""

    def data(tables: Tables) -> pd.DataFrame:
        import pandas as pd

        frame = pd.concat([kind(tables, "ends", one) for one in kinds or (USUAL,)])
        return pd.concat([ranked(frame), numbered(frame).assign(what="number above λ_1/100")])

    return data


def unequal_times(tables: Tables) -> pd.DataFrame:
    """λ_1 at training times that fall as the width grows: what happens when time is not held fixed.

    Of every width, the snapshot nearest to n t = constant.
    """
    import numpy as np

    frame = kind(tables, "widths")
    target = FINAL * frame["width"].min() / frame["width"]
    off = np.abs(np.log(frame["t"] / target))
    return ranked(frame[off == off.groupby(frame["width"]).transform("min")], (1,))


def outside(tables: Tables) -> pd.DataFrame:
    """Share of eigenvalues above λ_1/100: what is not bulk."""
    frame = numbered(kind(tables, "ends"))
    return frame.assign(value=frame["value"] / frame["x"])


def bulk(tables: Tables) -> pd.DataFrame:
    """Share of the spectrum below λ_1/100, of all networks with at least three parameters per example."""
    frame = tables.part("ends", loss_function="xent")
    frame = numbered(frame[frame["parameters"] >= 3 * frame["examples"]])
    return frame.assign(value=1 - frame["value"] / frame["parameters"])


def null_bulk(tables: Tables) -> pd.DataFrame:
    """The same share in sample covariance matrices of noise with more dimensions than examples."""
    frame = tables.part("spikes", spike=1.0)
    frame = frame[frame["dimensions"] > frame["examples"]]
    return frame.assign(value=1 - frame["above_hundredth"], depth=0, activation="none", width=frame["dimensions"])


def gaps(tables: Tables) -> pd.DataFrame:
    """Whether the detectors agree that there is a gap, in networks on digits."""
    frame = tables.part("ends", loss_function="xent")
    return agreeing(frame[frame["parameters"] >= 3 * frame["examples"]])


def gaps_on_clusters(source: Data) -> Data:
    """Whether the detectors agree on networks of another kind."""

    def data(tables: Tables) -> pd.DataFrame:
        return agreeing(source(tables)).assign(depth=2, width=BLOB_WIDTH)

    return data


def agreeing(frame: pd.DataFrame) -> pd.DataFrame:
    """1 where the largest ratio and the class edge both count two or more, and the same, give or take one."""
    both = frame[list(DETECTORS)]
    return frame.assign(value=((both.max(axis=1) - both.min(axis=1) <= 1) & (both.min(axis=1) >= 2)).astype(float))


def over_time(tables: Tables) -> pd.DataFrame:
    """λ_1 and λ_k against η t, at snapshots where every example is classified correctly."""
    frame = kind(tables, "widths")
    frame = frame[frame["train_accuracy"] == 1]
    several = frame.groupby(["data", "width", "seed"])["t"].transform("size") >= 2
    return ranked(frame[several], (1, CLASSES)).drop(columns="x").rename(columns={"eta_t": "x"})


# --- Clusters ---------------------------------------------------------------------------------------------------------


def clusters(
    t: int = BLOB_STEPS, activation: str = "relu", labels: str = "classes", least: int = 0, most: int = 1000
) -> Data:
    """Networks trained on k clusters, at one snapshot."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables.part("clusters", t=t, activation=activation, labels=labels)
        frame = frame[frame["clusters"].between(least, most)]
        return frame.assign(parameters=[parameters(blob_sizes(k)) for k in frame["clusters"]])

    return data


DETECTORS = ("ratio", "class_edge")
"""Those that decide: one without an upper limit, and one that can never count more than k."""


def twice(frame: pd.DataFrame) -> pd.Series:
    """A wrong law: two outliers for each class."""
    return 2 * frame["clusters"]


def counted(source: Data, clear: bool = False) -> Data:
    """Whether networks have k outliers: give or take one, exactly for fewer than four.

    The largest ratio counts; where the class edge contradicts it by more than one there is no clear gap, and the row is
    unclear, or false if it has to be `clear`. Give or take one of two would let half the counts there are pass.
    """

    def data(tables: Tables) -> pd.DataFrame:
        import numpy as np

        from theory.curvature import outliers

        frame = source(tables)
        count = outliers.consensus(frame["ratio"], frame["class_edge"])
        return frame.assign(
            value=near(count, frame["clusters"]), unclear=0.0 if clear else np.isnan(count).astype(float)
        )

    return data


def counted_by_ratio(source: Data, law: Callable[[pd.DataFrame], pd.Series]) -> Data:
    """Whether networks have as many outliers as a wrong law says, by the largest ratio alone.

    The class edge, which cannot exceed k, would refute any larger number by construction.
    """

    def data(tables: Tables) -> pd.DataFrame:
        frame = source(tables)
        return frame.assign(value=near(frame["ratio"], law(frame)))

    return data


def near(count: Any, target: pd.Series) -> Any:
    """1 where a count is the target, give or take one if that is four or more; 0 where there is no count."""
    import numpy as np

    wanted = target.to_numpy(dtype=float)
    return (np.abs(np.asarray(count, dtype=float) - wanted) <= np.where(wanted < 4, 0, 1)).astype(float)


def count_slopes(source: Data) -> Data:
    """Least-squares slope b of n_out = a + b k, per detector, kind of centres and seed."""

    def data(tables: Tables) -> pd.DataFrame:
        import numpy as np
        import pandas as pd

        frame = source(tables)
        rows = []
        for (centres, seed), own in frame.groupby(["centres", "seed"]):
            for name in DETECTORS:
                slope = np.polyfit(own["clusters"].to_numpy(float), own[name].to_numpy(float), 1)[0]
                rows.append((centres, seed, name, slope))
        return pd.DataFrame(rows, columns=["centres", "seed", "detector", "value"])

    return data


# --- Separability -----------------------------------------------------------------------------------------------------


def pairs(column: str, rotate: bool = False) -> Data:
    """λ_1 against the standard deviation of two blobs; `rotate` calls every deviation by the next one's name."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["separability"]
        names = sorted(frame["std"].unique())
        shown = dict(zip(names, names[1:] + names[:1], strict=True)) if rotate else dict(zip(names, names, strict=True))
        return frame.assign(value=[top[0] for top in frame[column]], x=frame["std"].map(shown))

    return data


def count_changes(factor: float = 1.0) -> Data:
    """Outliers of networks on blobs of larger deviation less those on the smallest, by the largest ratio."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["separability"]
        least = frame["std"].min()
        first = frame[frame["std"] == least].set_index(["width", "seed"])["ratio"]
        rest = frame[frame["std"] > least]
        reference = first.loc[list(zip(rest["width"], rest["seed"], strict=True))].to_numpy()
        return rest.assign(value=factor * rest["ratio"] - reference)

    return data


# --- Exact spectra ----------------------------------------------------------------------------------------------------

LAST = max(EXACT_STEPS)


def exactly(column: str, t: int | None = LAST, scale: float = 1.0, activation: str = "relu") -> Data:
    """A number measured on whole spectra, at one snapshot or at all, with M as x."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables.part("exact", activation=activation)
        frame = frame if t is None else frame[frame["t"] == t]
        return frame.assign(value=scale * frame[column], x=frame["parameters"])

    return data


def against(column: str, limit: str, scale: float = 1.0) -> Data:
    """A number beside the bound that another one gives it, at every snapshot."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["exact"]
        return frame.assign(value=frame[column], limit=scale * frame[limit])

    return data


def sum_for_mean(tables: Tables) -> pd.DataFrame:
    """Relative distance of the k largest eigenvalues of H from those of N G."""
    import numpy as np

    frame = tables.part("exact", t=LAST, activation="relu")
    leading = zip(frame["top_h"], frame["top_g"], frame["examples"], strict=True)
    value = [float(np.max(np.abs(np.array(h[:CLASSES]) / (N * np.array(g[:CLASSES])) - 1))) for h, g, N in leading]
    return frame.assign(value=value)


def lowest_bounds(share: float = 1.0) -> Data:
    """λ_min(G) over 0, and λ_min(H) over a share of λ_min(R)."""

    def data(tables: Tables) -> pd.DataFrame:
        import pandas as pd

        frame = tables["exact"]
        of_g = frame.assign(value=frame["lowest_g"], limit=0.0)
        return pd.concat([of_g, frame.assign(value=frame["lowest_h"], limit=share * frame["lowest_r"])])

    return data


def lowest_over_time(shift: bool = False) -> Data:
    """|λ_min|/λ_1 against time; `shift` calls every snapshot by the name of the one before, the first one the last."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["exact"]
        steps = list(EXACT_STEPS)
        named = dict(zip(steps, steps[-1:] + steps[:-1] if shift else steps, strict=True))
        return frame.assign(value=-frame["lowest_h"], x=frame["t"].map(named))

    return data


def number_of_negatives(activation: str = "relu") -> Data:
    """How many eigenvalues are negative, not which share."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = exactly("negative", activation=activation)(tables)
        return frame.assign(value=frame["negative"] * frame["parameters"])

    return data


# --- Batches ----------------------------------------------------------------------------------------------------------


def late(tables: Tables, arm: str) -> pd.DataFrame:
    """λ_1 (a geometric mean) and the count of outliers of one arm over its last snapshots, per seed."""
    import numpy as np

    frame = tables.part("batches", arm=arm)
    frame = frame[frame["t"].isin(LATE)]
    frame = frame.assign(log_largest=[np.log(top[0]) for top in frame["top"]])
    means = frame.groupby("seed", as_index=False)[["log_largest", "ratio"]].mean()
    return means.assign(largest=np.exp(means["log_largest"]))


def paired(column: str, arms: tuple[str, str] = ("large", "small")) -> Data:
    """A column of one arm beside that of another, seed by seed."""

    def data(tables: Tables) -> pd.DataFrame:
        first, second = (late(tables, arm)[["seed", column]] for arm in arms)
        return first.rename(columns={column: "value"}).merge(second.rename(columns={column: "reference"}), on="seed")

    return data


def unequal_iterations(tables: Tables) -> pd.DataFrame:
    """λ_1 of large batches at the end beside that of small batches after a fifth of the steps."""
    early = tables.part("batches", arm="small", t=EARLY)
    early = early.assign(reference=[top[0] for top in early["top"]])[["seed", "reference"]]
    return late(tables, "large").rename(columns={"largest": "value"}).merge(early, on="seed")


def convolutional(swap: bool = False) -> Data:
    """λ_1 of convolutional networks trained with the larger batch beside those with the smaller one, seed by seed."""

    def data(tables: Tables) -> pd.DataFrame:
        import numpy as np

        frame = tables["convolutions"]
        frame = frame.assign(value=[np.log(top[0]) for top in frame["top"]])
        means = np.exp(frame.groupby(["data", "seed", "batch"])["value"].mean()).unstack()
        first, second = (means.columns.max(), means.columns.min())[:: -1 if swap else 1]
        return means.rename(columns={first: "value", second: "reference"}).reset_index()

    return data


def count_difference(factor: float = 1.0) -> Data:
    """Outliers of large-batch networks less `factor` times those of small-batch ones."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = paired("ratio")(tables)
        return frame.assign(value=frame["value"] - factor * frame["reference"])

    return data


def barriers(tables: Tables) -> pd.DataFrame:
    """Height of the barrier on every path, per seed."""
    import pandas as pd
    import torch

    from theory.curvature import barrier

    rows = [
        (path, seed, float(barrier(torch.from_numpy(line["loss"].to_numpy(copy=True)), line["alpha"].tolist())))
        for (path, seed), line in tables["lines"].groupby(["path", "seed"])
    ]
    return pd.DataFrame(rows, columns=["path", "seed", "value"])


def barrier_excess(path: str, share: float) -> Data:
    """Barrier of a path less a share of the one between independent solutions, seed by seed."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = barriers(tables).pivot(index="seed", columns="path", values="value").reset_index()
        return frame.assign(value=frame[path] - share * frame["other start"])

    return data


def on_path(path: str) -> Data:
    """Barriers of one path."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = barriers(tables)
        return frame[frame["path"] == path]

    return data


# --- Random matrices --------------------------------------------------------------------------------------------------


def bbp(spike: float, alpha: float) -> float:
    """ℓ(1 + α/(ℓ − 1)), whether or not the spike is large enough for it."""
    return spike * (1 + alpha / (spike - 1))


def regime(tables: Tables, above: bool) -> pd.DataFrame:
    """Largest sample eigenvalues beside their spikes, at least a tenth above or below the transition.

    Nearer to it the fluctuations change from one law to another, and neither formula holds at finite size.
    """
    from theory.curvature import bbp_critical

    frame = tables["spikes"]
    frame = frame.assign(value=frame["largest"], alpha=frame["dimensions"] / frame["examples"])
    critical = frame["alpha"].map(bbp_critical)
    return frame[frame["spike"] > 1.1 * critical if above else (frame["spike"] > 1) & (frame["spike"] < 0.9 * critical)]


def spiked(law: Callable[[float, float], float], above: bool = True, inverse: bool = False) -> Data:
    """Largest eigenvalues of sample covariance matrices beside a law of the spike ℓ and α = M/N, or N/M."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = regime(tables, above)
        alpha = 1 / frame["alpha"] if inverse else frame["alpha"]
        return frame.assign(prediction=[law(*pair) for pair in zip(frame["spike"], alpha, strict=True)])

    return data


def edge(inverse: bool = False) -> Data:
    """Largest eigenvalues below the transition beside the mean of the edge of the bulk at this size."""

    def data(tables: Tables) -> pd.DataFrame:
        from theory.curvature import edge_mean

        frame = regime(tables, above=False)
        shapes = zip(frame["dimensions"], frame["examples"], strict=True)
        return frame.assign(prediction=[edge_mean(N, M) if inverse else edge_mean(M, N) for M, N in shapes])

    return data
