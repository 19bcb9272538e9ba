"""What the claims on growing runs are judged on: frames with the columns that their kinds need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from assay import AssayError
from studies.growth.growing import PROTOCOLS, SETTINGS, protocol_of, start
from studies.growth.runs import LARGE, WHERE

if TYPE_CHECKING:
    import pandas as pd

    from assay.results import Tables

Data = Callable[["Tables"], "pd.DataFrame"]

MAIN = {"digits": "ggn", "cifar10": LARGE}
"""The setting whose runs are compared with twins and with other growth."""
PAPER = {"digits": "ggn", "cifar10": "secnn"}
"""The setting that the paper's numbers are compared with: on CIFAR-10 its own rule."""
RUN = ["data", "classes", "setting", "unit_norm", "noise", "seed"]
ENOUGH = 5
"""Seeds whose runs have grown that a case needs: where hardly any does there is nothing to compare."""
DRAWS = 8
"""Draws per seed of what takes no training: coins, and orders at random. Each counts as a unit."""


def chosen(
    frame: pd.DataFrame,
    setting: str | Mapping[str, str] = MAIN,
    *,
    unit_norm: str | None = "none",
    noise: float | None = 0.0,
) -> pd.DataFrame:
    """Rows of the runs of one setting, of one per data set, with one kind of unit and one noise."""
    wanted = frame["data"].map(setting) if isinstance(setting, Mapping) else setting
    keep = frame["setting"] == wanted
    if unit_norm is not None:
        keep &= frame["unit_norm"] == unit_norm
    if noise is not None:
        keep &= frame["noise"] == noise
    return frame[keep]


def paired(
    tables: Tables,
    arm: str,
    reference: str,
    setting: str | Mapping[str, str] = MAIN,
    unit_norm: str = "none",
    column: str = "test",
) -> pd.DataFrame:
    """Test accuracy of an arm (or another `column` of its) beside the reference's, of the runs that have grown.

    Only the cases in which enough runs have grown; "trained" and "trained_reference" are the epochs of both.
    """
    frame = chosen(tables["final"], setting, unit_norm=unit_norm)
    arms = {name: own.set_index(RUN) for name, own in frame.groupby("arm")}
    own = arms[arm][[column, "trained"]].rename(columns={column: "value"})
    other = arms[reference][["test", "trained"]].rename(columns={"test": "reference", "trained": "trained_reference"})
    both = own.join(other, how="inner")
    grew = arms["grown"]["parameters"] > arms["small"]["parameters"].reindex(arms["grown"].index)
    both = both[grew.reindex(both.index)].reset_index()
    counts = both.groupby(["data", "classes"])["seed"].transform("nunique")
    return both[counts >= min(ENOUGH, frame["seed"].nunique())]


def fair(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame, if both sides of every pair were trained for as many epochs; AssayError otherwise."""
    unequal = frame[frame["trained"] != frame["trained_reference"]]
    if len(unequal):
        row = unequal.iloc[0]
        raise AssayError(
            f"{len(unequal)} pairs have unequal budgets, such as {row['trained']:g} epochs beside "
            f"{row['trained_reference']:g}: train both as long, or compare them at equal compute"
        )
    return frame


def against(arm: str, reference: str, setting: str | Mapping[str, str] = MAIN, unit_norm: str = "none") -> Data:
    """Final test accuracy of an arm beside the reference's, after as many epochs."""
    return lambda tables: fair(paired(tables, arm, reference, setting, unit_norm))


def unequal(
    arm: str, reference: str, setting: str | Mapping[str, str] = MAIN, unit_norm: str = "none", column: str = "test"
) -> Data:
    """The same, but where the lengths of training differ on purpose, or an accuracy from within the run is taken."""
    return lambda tables: paired(tables, arm, reference, setting, unit_norm, column)


def sizes(tables: Tables) -> pd.DataFrame:
    """Parameters of the net that grew at random locations over those of the growing run."""
    frame = chosen(tables["final"])
    both = frame.pivot_table(index=RUN, columns="arm", values="parameters")
    both = both.reindex(columns=["grown", "small", "random_size"]).dropna()
    both = both[both["grown"] > both["small"]]
    return (both["random_size"] / both["grown"]).rename("value").reset_index()


# --- Sizes at the end -------------------------------------------------------------------------------------------------


def added(setting: str, axis: str, least: float = 0) -> Data:
    """Parameters that growth has added by the end, against the number of classes or the noise, from `least` on."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = chosen(tables["final"], setting, noise=0.0 if axis == "classes" else None)
        if axis == "noise":
            frame = frame[frame["classes"] == 10]
        frame = _added(frame[frame["arm"] == "grown"])
        return frame.assign(x=frame[axis])[frame[axis] >= least]

    return data


def _added(frame: pd.DataFrame) -> pd.DataFrame:
    from theory.growth.network import parameter_count

    first = [
        parameter_count(start(*row)) for row in zip(frame["data"], frame["classes"], frame["unit_norm"], strict=True)
    ]
    return frame.assign(value=frame["parameters"] - first)


def shuffled(setting: str, axis: str, least: float = 0) -> Data:
    """The same with the sizes of each seed in random orders over the axis."""

    def data(tables: Tables) -> pd.DataFrame:
        import numpy as np
        import pandas as pd

        frame, drawn = added(setting, axis, least)(tables), []
        for draw in range(DRAWS):
            for _, own in frame.groupby(["data", "seed"]):
                seed = int(own["seed"].iloc[0])
                dice = np.random.default_rng([seed, draw])
                drawn.append(own.assign(seed=DRAWS * seed + draw, value=dice.permutation(own["value"])))
        return pd.concat(drawn)

    return data


def coin(setting: str, axis: str, least: float = 0) -> Data:
    """The same for growth that a coin decides on at every look, at random locations, in runs of their own."""

    def data(tables: Tables) -> pd.DataFrame:
        import pandas as pd

        frame, drawn = added(setting, axis, least)(tables), []
        for draw in range(DRAWS):
            keys = zip(frame["seed"], frame["x"], frame["classes"], frame["epochs"], strict=True)
            values = [float(_tossed(setting, (seed, draw), x, classes, epochs)[0]) for seed, x, classes, epochs in keys]
            drawn.append(frame.assign(seed=DRAWS * frame["seed"] + draw, value=values))
        return pd.concat(drawn)

    return data


def _tossed(setting: str, draw: tuple[int, int], x: float, classes: int, epochs: int) -> tuple[int, int]:
    """Parameters added, and expansions in the last third, of growth by coin; no training is needed to know them."""
    from dataclasses import replace

    import torch

    from theory.ensemble import stream
    from theory.growth.decide import due, eligible
    from theory.growth.network import parameter_count

    p, shape, late = protocol_of("digits", SETTINGS[setting]), start("digits", int(classes), "none"), 0
    generator = stream("growth", "coin", (int(draw[0]), draw[1]), f"{x:g}")
    before = parameter_count(shape)
    for epoch in range(1, epochs):
        if not due(epoch, warm_up=p.warm_up, every=p.every) or float(torch.rand((), generator=generator)) < 0.5:
            continue
        candidates = eligible(shape, channels=(p.channels,), capacity=p.capacity)
        if not candidates:
            break
        one = candidates[int(torch.randint(len(candidates), (), generator=generator))]
        widths, units = list(shape.widths), list(shape.units)
        widths[one.block - 1] += one.channels
        units[one.block - 1] += one.kind == "identity"
        shape, late = replace(shape, widths=tuple(widths), units=tuple(units)), late + (3 * epoch > 2 * epochs)
    return parameter_count(shape) - before, late


def ratio(setting: str, other_task: bool = False) -> Data:
    """Binary logarithm of the parameters that a setting adds over those that the plain one adds, where both have grown.

    With `other_task` the setting's runs are those of ten classes, whatever the plain runs' are.
    """

    def data(tables: Tables) -> pd.DataFrame:
        import numpy as np

        plain, frame = added("ggn", "classes")(tables), added(setting, "classes")(tables)
        keys = ["data", "seed"] if other_task else ["data", "classes", "seed"]
        if other_task:
            frame, plain = frame[frame["classes"] == 10], plain[plain["classes"] < 10]
        both = plain.merge(frame[[*keys, "value"]], on=keys, suffixes=("_plain", ""))
        both = both[(both["value"] > 0) & (both["value_plain"] > 0)]
        both = both.assign(value=np.log2(both["value"] / both["value_plain"]))
        counts = both.groupby(["data", "classes"])["seed"].transform("nunique")
        return both[counts >= min(ENOUGH, plain["seed"].nunique())]

    return data


def passing(setting: str | Mapping[str, str], tau: float | None = None) -> Data:
    """Expansions of each run; with `tau` the looks at which the best candidate's score is above tau times the net's."""

    def data(tables: Tables) -> pd.DataFrame:
        events = chosen(tables["events"], setting)
        hit = events["event"] != "none" if tau is None else events["ratio"] > tau
        return events.assign(value=hit.astype(float)).groupby(RUN)["value"].sum().reset_index()

    return data


def late(setting: str) -> Data:
    """Expansions in the last third of the epochs of each run, for the easy tasks: 2 and 4 classes."""

    def data(tables: Tables) -> pd.DataFrame:
        events = chosen(tables["events"], setting)
        events = events[(events["data"] == "digits") & (events["classes"] <= 4)]
        happened = (events["event"] != "none") & (3 * events["epoch"] > 2 * events["epochs"])
        return events.assign(value=happened.astype(float)).groupby([*RUN, "epochs"])["value"].sum().reset_index()

    return data


def late_coin(tables: Tables) -> pd.DataFrame:
    """The same for growth by coin."""
    import pandas as pd

    frame, drawn = late(MAIN["digits"])(tables), []
    for draw in range(DRAWS):
        keys = zip(frame["seed"], frame["classes"], frame["epochs"], strict=True)
        values = [
            float(_tossed(MAIN["digits"], (seed, draw), classes, classes, epochs)[1]) for seed, classes, epochs in keys
        ]
        drawn.append(frame.assign(seed=DRAWS * frame["seed"] + draw, value=values))
    return pd.concat(drawn)


# --- After an expansion -----------------------------------------------------------------------------------------------


def recovered(column: str, left: bool = False) -> Data:
    """Best test accuracy within the window after an expansion, less the last before: of the run, or of a broken one.

    "after": the run. "box": the same block got a box kernel in place of what was taken, "box_now" before any training.
    "first": the net was trained anew, as its static twin, for as many epochs. All but "after" for six classes and more: fewer
    are learnt anew within the window. With `left` the column "reference" is the best of the net left as it is, and "value"
    the accuracy itself.
    """

    def data(tables: Tables) -> pd.DataFrame:
        frame = chosen(tables["recoveries"])
        frame = frame[frame["epochs_after"] >= frame["data"].map({name: p.window for name, p in PROTOCOLS.items()})]
        if column == "first":
            final = tables["final"]
            twins = final.loc[final["arm"] == "twin", [*RUN, "first"]]
            frame = frame.merge(twins, on=RUN)
        if left or column != "after":
            frame = frame[(frame["data"] == "digits") & frame["classes"].isin(WHERE)]
        if left:
            return frame.assign(value=frame[column], reference=frame["left"])
        return frame.assign(value=frame[column] - frame["before"])

    return data


def overhead(setting: str | Mapping[str, str] = MAIN, times: int = 1) -> Data:
    """Seconds of scoring over seconds of training, with so many `times` the looks."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = chosen(tables["times"], setting)
        sums = frame.groupby(["data", "classes", "seed"], as_index=False)[["score_s", "train_s"]].sum()
        return sums.assign(value=times * sums["score_s"] / sums["train_s"])

    return data


# --- The paper's numbers ----------------------------------------------------------------------------------------------

BEST, SIZE = 0.841, 62_698.4
"""Mean best accuracy, and mean number of parameters there, Appolinary et al. 2024, figure 3."""


def published(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows on CIFAR-10 where there are any: only they can be compared with what was published."""
    there = frame["data"] == "cifar10"
    return frame[there] if there.any() else frame


def best(arm: str, column: str = "best", setting: Mapping[str, str] = PAPER) -> Data:
    """Accuracy of an arm at its best epoch, at 10 classes."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = published(chosen(tables["final"], setting))
        return frame[(frame["arm"] == arm) & (frame["classes"] == 10)].rename(columns={column: "value"})

    return data


def reached(arm: str, setting: Mapping[str, str] = MAIN, levels: tuple[float, ...] = (0.7, 0.8)) -> Data:
    """Parameters when a level of accuracy is first reached, and at the best epoch (level 1), at 10 classes."""

    def data(tables: Tables) -> pd.DataFrame:
        import pandas as pd

        frame = chosen(tables["epochs"], setting)
        frame = frame[(frame["arm"] == arm) & (frame["classes"] == 10)]
        rows = []
        for (data, seed), run in frame.sort_values("epoch").groupby(["data", "seed"]):
            for level in (*levels, 1.0):
                at = run[run["held"] >= min(level, run["held"].max())]["parameters"].iloc[0]
                rows.append({"data": data, "seed": seed, "x": level, "value": float(at)})
        return pd.DataFrame(rows, columns=["data", "seed", "x", "value"])

    return data


def size(arm: str, level: float = 1.0, setting: Mapping[str, str] = PAPER) -> Data:
    """Binary logarithm of the parameters at a level over the paper's at the best accuracy."""

    def data(tables: Tables) -> pd.DataFrame:
        import numpy as np

        frame = published(reached(arm, setting)(tables))
        frame = frame[frame["x"] == level]
        return frame.assign(value=np.log2(frame["value"].astype(float) / SIZE))

    return data


def on_cifar(tables: Tables) -> pd.DataFrame:
    """Whether the images are those that the paper's numbers were measured on."""
    frame = published(tables["final"])[["data", "seed"]].drop_duplicates()
    return frame.assign(value=(frame["data"] == "cifar10").astype(float))


# --- Ranks ------------------------------------------------------------------------------------------------------------


def ranks(score: str, reference: str | None = None) -> Data:
    """Spearman's ρ of a score with the extra drop of the loss, per checkpoint and seed; "shuffled": of random orders."""

    def data(tables: Tables) -> pd.DataFrame:
        frame = tables["ranking"]
        rows = []
        for (data, checkpoint, seed), own in frame.groupby(["data", "checkpoint", "seed"]):
            row: dict[str, Any] = {"data": data, "checkpoint": checkpoint, "seed": seed, "value": _spearman(own, score)}
            rows.append(row | ({} if reference is None else {"reference": _spearman(own, reference)}))
        return _frame(rows)

    return data


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _spearman(own: pd.DataFrame, score: str) -> float:
    import numpy as np

    if score != "shuffled":
        return float(own[score].corr(own["extra"], method="spearman"))
    dice = np.random.default_rng([int(own["seed"].iloc[0]), int(own["checkpoint"].iloc[0])])
    orders = [own["ggn"].sample(frac=1, random_state=dice).to_numpy() for _ in range(20)]
    return float(np.mean([own["extra"].corr(own["extra"] * 0 + order, method="spearman") for order in orders]))
