"""Progress: a bar on a terminal, plain lines elsewhere, and what both of them count."""

from __future__ import annotations

import io
import re

import pytest

from assay import progress
from assay.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until the test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200.4, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_duration_is_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_text_counts_cells_rate_time_left_and_failures(clock: list[float]) -> None:
    bar = Progress("toy smoke", cells=10, expected_s=100.0, stream=io.StringIO())
    bar.begin()
    assert bar.text() == "0/10 cells, 0 failed"
    clock[0] += 20
    bar.advance(4, expected_s=50.0)  # the dear half of the work
    assert bar.text() == "4/10 cells, 0.2 cells/s, 20 s left, 0 failed"
    clock[0] += 10
    bar.advance(1, expected_s=25.0, failed=True)
    assert bar.text() == "4/10 cells, 0.1 cells/s, 10 s left, 1 failed"
    bar.advance(5, expected_s=25.0)
    assert bar.text() == "9/10 cells, 0.3 cells/s, took 30 s, 1 failed"


def test_without_expected_times_cells_tell_the_time_left(clock: list[float]) -> None:
    bar = Progress("toy smoke", cells=10, expected_s=0.0, stream=io.StringIO())
    bar.begin()
    clock[0] += 6
    bar.advance(1, expected_s=0.0)
    bar.advance(1, expected_s=0.0, failed=True)
    assert "24 s left" in bar.text()


def test_lines_are_few_where_there_is_no_terminal(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress("toy smoke", cells=100, expected_s=100.0, stream=stream) as bar:
        assert stream.getvalue() == ""  # an error before the first pack stays the only line
        bar.begin()
        for _ in range(100):
            clock[0] += progress.LINE_EVERY_S / 10
            bar.advance(1, expected_s=1.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "toy smoke: 0/100 cells, 0 failed"
    assert lines[-1] == "toy smoke: 100/100 cells, 2.0 cells/s, took 50 s, 0 failed"
    assert len(lines) == 2 + 10
    assert "\x1b" not in stream.getvalue()


def test_nothing_is_said_of_a_sweep_that_did_not_begin() -> None:
    stream = io.StringIO()
    with Progress("toy smoke", cells=1, expected_s=1.0, stream=stream):
        pass
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_at_once() -> None:
    stream = Terminal()
    with Progress("toy smoke", cells=4, expected_s=4.0, stream=stream) as bar:
        assert "starting Ray" in stream.getvalue()
        bar.begin()
        bar.advance(4, expected_s=4.0)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"toy smoke ━+ 4/4 cells, .* cells/s, took 0 s, 0 failed", drawn.replace("\n", " "))
