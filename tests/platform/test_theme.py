"""The theme: colours that every eye tells apart on both pages, and text large enough to read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from assay import theme


def luminance(colour: str) -> float:
    """Relative luminance of sRGB (WCAG 2.2)."""
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def linear(colour: str) -> np.ndarray:
    channel = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_every_colour_stands_out_from_its_page(mode: theme.Mode) -> None:
    for colour in (*mode.series, *(colour for colour, _ in theme.OUTCOMES.values())):
        assert contrast(colour, mode.page) >= 3.0, colour
    for text in (mode.ink, mode.muted):
        assert contrast(text, mode.page) >= 4.5, text
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)


# Machado, Oliveira & Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009),
# severity 1.0, linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of linear sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 1e-4, 1.0) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("mode", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_series_are_told_apart_by_every_eye(mode: theme.Mode, vision: str) -> None:
    seen = {colour: lab(np.array(VISION[vision]) @ linear(colour)) for colour in mode.series}
    for one, other in itertools.combinations(mode.series, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= 10.0, (one, other)


def sizes(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key.endswith("ontSize"):
                yield value
            yield from sizes(value)


def test_no_text_is_smaller_than_eleven_pixels_and_the_page_shows_through() -> None:
    for mode in (theme.LIGHT, theme.DARK):
        found = list(sizes(theme.config(mode)))
        assert len(found) >= 8
        assert min(found) >= 11
        assert theme.config(mode)["background"] == "transparent"
