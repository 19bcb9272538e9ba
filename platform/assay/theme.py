"""How Assay's charts look: one Altair theme, two palettes, and charts as plain specifications and static images.

The hues are those of Okabe and Ito (Color Universal Design, 2008), which stay apart for every kind of colour vision.
On a light page the bright ones are darkened until each has a contrast of 3 to 1.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

Spec = dict[str, Any]

FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
LABEL_SIZE = 12
_SHAPES = "circle square triangle-up diamond cross triangle-down triangle-right triangle-left"
SHAPES = tuple(_SHAPES.split())
DASHES: tuple[tuple[float, ...], ...] = ((1, 0), (7, 3), (2, 2), (8, 3, 2, 3), (4, 2), (10, 2), (1, 3), (5, 2, 1, 2))
OUTCOMES = {
    "supported": ("#00875f", "circle"),
    "refuted": ("#d55e00", "cross"),
    "inconclusive": ("#7a8392", "diamond"),
    "void": ("#9467bd", "square"),
}
"""Colour and shape of an outcome, the same on light and dark pages."""
IMAGE_SCALE = 2.0
"""Pixels of a PNG per pixel of the chart: a chart of 400 to 800 pixels stays sharp when shown 800 wide."""


@dataclass(frozen=True)
class Mode:
    """Colours of a light or a dark page."""

    page: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]


LIGHT = Mode(
    page="#ffffff",
    ink="#1b1f27",
    muted="#596273",
    grid="#e4e7ec",
    series=("#004f86", "#a84300", "#00855e", "#c85c9e", "#bd8407", "#3399dd"),
)
DARK = Mode(
    page="#14171c",
    ink="#e8eaee",
    muted="#a5adba",
    grid="#2c323b",
    series=("#0f7bbb", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)


def config(mode: Mode = LIGHT) -> Spec:
    """Vega-Lite configuration of a mode: the background is transparent, so that the page shows through."""
    text = {"labelColor": mode.ink, "titleColor": mode.ink, "labelFontSize": LABEL_SIZE, "titleFontSize": 13}
    return {
        "background": "transparent",
        "font": FONT,
        "padding": 4,
        "view": {"stroke": None},
        "axis": text
        | {
            "titleFontWeight": 500,
            "titlePadding": 8,
            "labelLimit": 260,
            "gridColor": mode.grid,
            "domainColor": mode.muted,
            "tickColor": mode.muted,
        },
        "header": text | {"labelFontWeight": 600, "labelFontSize": 13},
        "legend": text
        | {"titleFontSize": LABEL_SIZE, "titleFontWeight": 500, "orient": "top", "columns": 4, "symbolSize": 80}
        | {"labelLimit": 260, "columnPadding": 18, "gradientLength": 220},
        "title": {
            "anchor": "start",
            "color": mode.ink,
            "subtitleColor": mode.muted,
            "fontSize": 15,
            "fontWeight": 600,
            "subtitleFontSize": LABEL_SIZE,
            "subtitlePadding": 5,
            "offset": 12,
        },
        "text": {"color": mode.ink, "fontSize": 11},
        "range": {"category": list(mode.series)},
        "style": {
            "theory": {"color": mode.muted, "strokeWidth": 2},
            "region": {"color": mode.muted, "opacity": 0.2},
            "missing": {"color": mode.muted, "opacity": 0.3},
        },
    }


def activate() -> None:
    """Register the theme with Altair and enable it; charts call this on first use, importing Assay does not."""
    import altair as alt

    if "assay" not in alt.theme.names():

        @alt.theme.register("assay", enable=False)
        def _theme() -> alt.theme.ThemeConfig:
            return alt.theme.ThemeConfig(config=config())  # type: ignore[typeddict-item]

    if alt.theme.active != "assay":
        alt.theme.enable("assay")


def specification(chart: alt.TopLevelMixin) -> Spec:
    """Vega-Lite specification of a chart without the theme; the same chart drawn again gives the same bytes.

    Altair numbers the views and parameters it names over the life of the process: they are numbered anew per chart.
    """
    import altair as alt

    with alt.theme.enable("none"):
        text = json.dumps(chart.to_dict())
    for generated in (r'(?<=")view_[0-9a-f_]+(?=")', r'(?<=")param_[0-9a-f_]+(?=")'):
        text = _renumbered(text, generated)
    spec: Spec = json.loads(text)
    own = {key: value for key, value in spec.pop("config", {}).items() if (key, value) != ("view", _DEFAULT_VIEW)}
    return spec | ({"config": own} if own else {})


def _renumbered(text: str, pattern: str) -> str:
    """Replace generated names, alike up to the first digit or '_', by 1, 2, … in order of appearance."""
    names = {name: index for index, name in enumerate(dict.fromkeys(re.findall(pattern, text)), 1)}
    return re.sub(pattern, lambda found: f"{re.split(r'[0-9_]', found[0])[0]}_{names[found[0]]}", text)


_DEFAULT_VIEW = {"continuousWidth": 300, "continuousHeight": 300}


def vegalite_version() -> str:
    """Version of Vega-Lite that Altair writes, as vl-convert calls it."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def svg(spec: Spec, mode: Mode = LIGHT) -> str:
    """SVG of a specification, transparent, in the colours of a mode."""
    import vl_convert

    drawn = vl_convert.vegalite_to_svg(spec, vl_version=vegalite_version(), config=config(mode))
    return _renumbered(_renumbered(drawn, r"\bclip\d+\b"), r"\bgradient_\d+\b")


def png(spec: Spec) -> bytes:
    """PNG of a specification on white: a picture is shown on pages that are not ours."""
    import vl_convert

    return vl_convert.vegalite_to_png(
        spec, vl_version=vegalite_version(), config=config() | {"background": LIGHT.page}, scale=IMAGE_SCALE
    )


def script() -> str:
    """Vega, Vega-Lite and vega-embed as one classic script: what a page needs to draw with the network off."""
    import vl_convert

    # None: its own snippet, which puts vegaEmbed on the window; any other is bundled anew at every call
    return vl_convert.javascript_bundle(None, vl_version=vegalite_version())  # type: ignore[arg-type]
