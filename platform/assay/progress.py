"""Live progress of a sweep: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

LINE_EVERY_S = 5.0


def duration(seconds: float) -> str:
    """Readable time span: 12 s, 3 min 20 s, 2 h 5 min.

    >>> duration(200.4)
    '3 min 20 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Cells done of all, cells per second, time left and failures, written to `stream` (standard error).

    Time left is weighed by the packs' expected seconds, because packs differ widely in cost. A terminal shows the bar
    at once; elsewhere nothing is written before `begin`.
    """

    def __init__(self, label: str, cells: int, expected_s: float, stream: TextIO | None = None) -> None:
        self.label = label
        self.cells = cells
        self.expected_s = expected_s
        self.stream = stream or sys.stderr
        self.done = self.failed = 0
        self.done_s = 0.0
        self.started: float | None = None
        self._printed = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
            self._bar = Progress(*columns, console=Console(file=self.stream))
            self._bar.add_task(self.label, total=self.cells, text="starting Ray")
            self._bar.start()
        return self

    def begin(self) -> None:
        """Start the clock: the first packs are on their way."""
        self.started = time.monotonic()
        self._show(force=True)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.started is not None:
            self._show(force=True)
        if self._bar is not None:
            self._bar.stop()

    def text(self) -> str:
        """What the bar or a line says."""
        elapsed = time.monotonic() - (self.started or time.monotonic())
        parts = [f"{self.done}/{self.cells} cells"]
        share = self.done_s / self.expected_s if self.expected_s else (self.done + self.failed) / max(self.cells, 1)
        if self.done:
            parts.append(f"{self.done / max(elapsed, 1e-9):.1f} cells/s")
        if self.done + self.failed == self.cells:
            parts.append(f"took {duration(elapsed)}")
        elif share > 0:
            parts.append(f"{duration(elapsed * (1 - share) / share)} left")
        parts.append(f"{self.failed} failed")
        return ", ".join(parts)

    def advance(self, cells: int, expected_s: float, failed: bool = False) -> None:
        """Count a finished pack."""
        self.done_s += expected_s
        if failed:
            self.failed += cells
        else:
            self.done += cells
        self._show()

    def _show(self, force: bool = False) -> None:
        if self._bar is not None:
            self._bar.update(0, completed=self.done + self.failed, text=self.text())
            return
        now = time.monotonic()
        if force or now - self._printed >= LINE_EVERY_S:
            self._printed = now
            print(f"{self.label}: {self.text()}", file=self.stream, flush=True)
