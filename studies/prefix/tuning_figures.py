"""Figures of fine-tuning: all of it is measured, so there are points with intervals and no lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay import Figure
from studies.prefix.arms import ARMS
from studies.prefix.tuning_claims import chosen

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from assay.results import Tables

FAMILIES = {"head": "head alone", "full": "full", "lora": "LoRA", "prefix": "P-Tuning v2", "ntk": "NTK-attention"}
NAMES = {
    "head": "head alone",
    "full": "full",
    "ntk": "NTK-attention",
    "ntk-zeros": "NTK-attention, published start",
} | {
    arm.name: f"{FAMILIES[arm.kind]}, {'rank' if arm.kind == 'lora' else 'm ='} {arm.size}"
    for arm in ARMS.values()
    if arm.kind in ("lora", "prefix")
}
"""Arms that figures show; controls are judged, not drawn."""


def _drawn(frame: pd.DataFrame) -> pd.DataFrame:
    """Arms that are no controls, under the names a reader sees and in the order of `NAMES`."""
    import pandas as pd

    frame = frame[frame["arm"].isin(NAMES)].sort_values(["backbone", "steps"])
    trained = [f"{backbone}, {steps} steps" for backbone, steps in zip(frame["backbone"], frame["steps"], strict=True)]
    present = [name for arm, name in NAMES.items() if (frame["arm"] == arm).any()]
    return frame.assign(
        family=pd.Categorical([FAMILIES[ARMS[arm].kind] for arm in frame["arm"]], list(FAMILIES.values())),
        named=pd.Categorical(frame["arm"].map(NAMES), present),
        trained=pd.Categorical(trained, list(dict.fromkeys(trained))),
        size=1 + frame["parameters"],
    )


def _by_size(tables: Tables, column: str, *, log: bool, y_title: str, title: str) -> alt.TopLevelMixin:
    """A column of the arms at their chosen rates against the number of parameters they train."""
    from assay import charts

    frame = _drawn(chosen(tables))
    # The published start trains as many parameters as the other and would hide it; the figure of rates shows both.
    frame = frame[frame["arm"] != "ntk-zeros"]
    rates = tables["tuning"]["lr"].nunique()
    return charts.scaling(
        charts.summarise(frame, ["trained", "family", "size"], column, "seed", log=log),
        x="size",
        color="family",
        facet="trained",
        x_title="1 + trained parameters beside the head",
        y_title=y_title,
        color_title="",
        title=title,
        subtitle=f"For every arm and seed the best of {rates} learning rates on validation images.",
        log_y=log,
        x_base=10,
        columns=2,
        width=310,
        height=300,
    )


def accuracy(tables: Tables) -> alt.TopLevelMixin:
    """Test accuracy of the arms."""
    return _by_size(tables, "test", log=False, y_title="test accuracy", title="Test accuracy, by what is trained")


def losses(tables: Tables) -> alt.TopLevelMixin:
    """Training loss of the arms."""
    title = "Training loss, by what is trained"
    return _by_size(tables, "train_loss", log=True, y_title="training loss after the last step (nats)", title=title)


def rates(tables: Tables) -> alt.TopLevelMixin:
    """Validation accuracy of every arm against the learning rate: whether the grid holds each arm's best."""
    from assay import charts

    frame = _drawn(tables["tuning"])
    return charts.scaling(
        charts.summarise(frame, ["named", "trained", "lr"], "validation", "seed", log=False),
        x="lr",
        color="trained",
        facet="named",
        x_title="learning rate",
        y_title="validation accuracy",
        color_title="",
        title="Validation accuracy, by learning rate",
        log_y=False,
        x_base=10,
        columns=4,
        width=190,
        height=150,
    )


FIGURES = (
    Figure(
        "tuning_accuracy",
        "Test accuracy, by what is trained",
        "Arms on one axis of trained parameters, each at its own best learning rate. The head is trained in every arm.",
        accuracy,
        ("NTK-8P", "NTK-8PL", "NTK-8L", "NTK-8F", "NTK-8H"),
    ),
    Figure(
        "tuning_rates",
        "Validation accuracy, by learning rate",
        "All arms try the same rates. An arm that is best at an end of the grid might do better beyond it.",
        rates,
        ("NTK-8P", "NTK-8PL", "NTK-8L", "NTK-8F", "NTK-8Z", "NTK-8ZA"),
    ),
    Figure(
        "tuning_losses",
        "Training loss, by what is trained",
        "How closely each arm fits the training images at the rate that is best on others.",
        losses,
        ("NTK-8P", "NTK-8PL", "NTK-8F"),
    ),
)
