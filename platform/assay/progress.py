"""Live progress of a sweep: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

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

    Time left is weighed by the packs' expected seconds, because packs differ widely in cost.
    """

    def __init__(self, label: str, cells: int, expected_s: float, stream: TextIO | None = None) -> None:
        self.label = label
        self.cells = cells
        self.expected_s = expected_s
        self.stream = stream or sys.stderr
        self.done = self.failed = 0
        self.done_s = 0.0
        self.started = time.monotonic()
        self._printed = 0.0
        self._bar = None
        self._task = None

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
            self._bar = Progress(*columns, console=Console(file=self.stream), transient=False)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.cells, text=self.text())
        else:
            self._line(force=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._line(force=True)

    def text(self) -> str:
        """What the bar or a line says."""
        elapsed = time.monotonic() - self.started
        parts = [f"{self.done}/{self.cells} cells", f"{self.done / max(elapsed, 1e-9):.1f} cells/s"]
        share = self.done_s / self.expected_s if self.expected_s else self.done / max(self.cells, 1)
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
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done + self.failed, text=self.text())
        else:
            self._line()

    def _line(self, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._printed >= LINE_EVERY_S:
            self._printed = now
            print(f"{self.label}: {self.text()}", file=self.stream, flush=True)
