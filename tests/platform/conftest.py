"""What tests of the command share: running it in this process, and results of the two studies of this folder."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple

import pytest

from assay import registry
from assay.cli import main
from assay.plan import plan
from assay.store import Store
from assay.sweep import run_and_commit

HERE = Path(__file__).parent


class Said(NamedTuple):
    """What a command did: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tell() -> Callable[..., Said]:
    """Run the command in this process."""

    def tell(*arguments: object) -> Said:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", ["assay", *map(str, arguments)])
            try:
                main()
            except SystemExit as exit_:
                return Said(int(exit_.code or 0), out.getvalue(), err.getvalue())
        raise AssertionError("the command always exits")

    return tell


@pytest.fixture(scope="session")
def measure() -> Callable[..., None]:
    """Fill a store with a study's results, without Ray."""

    def measure(study: Path, root: Path, *scales: str) -> None:
        declared = registry.load(str(study))
        for scale in scales:
            for pack in plan(declared, scale):
                failed, _ = run_and_commit(declared, pack, Store(root), {"revision": "r1", "libraries": {"numpy": "2"}})
                assert not failed

    return measure


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, measure: Callable[..., None]) -> Path:
    """Results of `mean_study` at smoke and of `toy_study` at laptop scale."""
    root = tmp_path_factory.mktemp("measured")
    measure(HERE / "mean_study.py", root, "smoke")
    measure(HERE / "toy_study.py", root, "laptop")
    return root


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both studies are installed, and commands run in an empty folder."""
    monkeypatch.syspath_prepend(str(HERE))
    points = [EntryPoint(name, f"{name}_study:study", registry.GROUP) for name in ("toy", "mean")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.delenv("ASSAY_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Copy `mean_study` with changes in its text."""

    def edited(*changes: tuple[str, str]) -> Path:
        text = (HERE / "mean_study.py").read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "edited_study.py"
        path.write_text(text)
        return path

    return edited
