"""From the study's tables to the frames that claims are judged on and figures drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from studies.hessian.networks import CLASSES
from studies.hessian.trials import BLOB_STEPS, EARLY, EXACT_STEPS, LATE, blob_sizes, parameters

if TYPE_CHECKING:
    import pandas as pd

    from assay.results import Tables

Data = Callable[["Tables"], "pd.DataFrame"]

FINAL = 2000
"""Step at which widths are compared."""
NARROWEST = 2 * CLASSES
"""Networks narrower than twice the number of classes are bottlenecks and left out of comparisons between widths."""


# --- Width ------------------------------------------------------------------------------------------------------------


def kind(tables: Tables, loss: str = "xent", depth: int = 1, activation: str = "relu") -> pd.DataFrame:
    """Snapshots of the networks of one kind that are wide enough to be compared, with M as x."""
    frame = tables.part("widths", loss_function=loss, depth=depth, activation=activation)
    return frame[frame["width"] >= NARROWEST].rename(columns={"parameters": "x"})


def ranked(frame: pd.DataFrame, ranks: Sequence[int] = (1, CLASSES, 2 * CLASSES)) -> pd.DataFrame:
    """Eigenvalues of the given ranks as rows: column value, and `what` says which."""
    import pandas as pd

    return pd.concat([frame.assign(value=[top[j - 1] for top in frame["top"]], what=f"λ_{j}") for j in ranks])


NUMBERS = {"above_hundredth": "number above λ_1/100", "above_tenth": "number above λ_1/10"}
USUAL = ("xent", 1, "relu")
"""Loss, number of hidden layers and activation of the networks that the papers study."""


def wide(*kinds: tuple[str, int, str], number: str = "above_hundredth") -> Data:
    """What should not move with the width: three eigenvalues and a number of them, after equally many steps."""

    def data(tables: Tables) -> pd.DataFrame:
        import pandas as pd

        frame = pd.concat([kind(tables, *one) for one in kinds or (USUAL,)])
        frame = frame[frame["t"] == FINAL]
        counted = frame.assign(value=frame[number], what=NUMBERS[number])
        return pd.concat([ranked(frame), counted])

    return data


def unequal_times(tables: Tables) -> pd.DataFrame:
    """λ_1 at training times that fall as the width grows, n t constant: what happens when time is not held fixed."""
    frame = kind(tables)
    return ranked(frame[frame["t"] * frame["width"] == FINAL * frame["width"].min()], (1,))


def outside(tables: Tables) -> pd.DataFrame:
    """Share of eigenvalues above λ_1/100: what is not bulk."""
    frame = kind(tables)
    frame = frame[frame["t"] == FINAL]
    return frame.assign(value=frame["above_hundredth"] / frame["x"])


def bulk(tables: Tables) -> pd.DataFrame:
    """Share of the spectrum below λ_1/100, of all networks with at least three parameters per example."""
    frame = tables.part("widths", loss_function="xent", t=FINAL)
    frame = frame[frame["parameters"] >= 3 * frame["examples"]]
    return frame.assign(value=1 - frame["above_hundredth"] / frame["parameters"])


def null_bulk(tables: Tables) -> pd.DataFrame:
    """The same share in sample covariance matrices of noise with more dimensions than examples."""
    frame = tables.part("spikes", spike=1.0)
    frame = frame[frame["dimensions"] > frame["examples"]]
    return frame.assign(value=1 - frame["above_hundredth"], depth=0, activation="none", width=frame["dimensions"])


def over_time() -> Data:
    """λ_1 and λ_k against η t, at snapshots where every example is classified correctly."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = kind(tables)
        frame = frame[frame["train_accuracy"] == 1]
        several = frame.groupby(["width", "seed"])["t"].transform("size") >= 2
        return ranked(frame[several], (1, CLASSES)).drop(columns="x").rename(columns={"eta_t": "x"})

    return data


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


def readings(source: Data, law: Callable[[pd.DataFrame], pd.Series] | None = None) -> Data:
    """Ask of each network, once per deciding detector, whether its count is within one of k, or of what `law` says.

    Where the detectors contradict each other half of the rows are false, and a claim about most of them is undecided.
    """

    def data(tables: Tables) -> pd.DataFrame:
        import pandas as pd

        frame = source(tables)
        target = frame["clusters"] if law is None else law(frame)
        votes = [
            frame.assign(value=((frame[name] - target).abs() <= 1).astype(float), detector=name) for name in DETECTORS
        ]
        return pd.concat(votes)

    return data


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


def outliers_against_std(tables: Tables) -> pd.DataFrame:
    """Counts of outliers on two blobs."""
    frame = tables["separability"]
    sizes = [parameters((2, width, width, 2)) for width in frame["width"]]
    return frame.assign(clusters=2, parameters=sizes)


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


def barrier_share(path: str) -> Data:
    """Barrier of a path as a share of the one between independent solutions, seed by seed."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = barriers(tables).pivot(index="seed", columns="path", values="value").reset_index()
        return frame.assign(value=frame[path] / frame["other start"].mean())

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
