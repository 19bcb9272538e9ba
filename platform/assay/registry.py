"""Finding studies: by the name of an installed entry point, or in a Python file."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from assay.errors import AssayError, unknown
from assay.study import Study

GROUP = "assay.studies"


def available() -> dict[str, EntryPoint]:
    """Entry points of all installed studies, by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def load(reference: str) -> Study:
    """Load a study by its installed name, or from a `.py` file that defines one `Study` at module level.

    AssayError when there is no such study, when its module cannot be imported, or when a file holds none or several.
    A file is executed again only when it has changed.
    """
    if reference.endswith(".py"):
        path = Path(reference).resolve()
        if not path.is_file():
            raise AssayError(f"no study file {str(path)!r}")
        return _from_file(path, path.stat().st_mtime_ns, path.stat().st_size)
    points = available()
    if reference not in points:
        raise unknown("study", reference, points)
    study = _importing(f"study {reference!r}", points[reference].load)
    if not isinstance(study, Study):
        raise AssayError(f"study {reference!r}: {points[reference].value} is a {type(study).__name__}, not a Study")
    if study.name != reference:
        raise AssayError(f"study {reference!r} calls itself {study.name!r}: name it as its entry point")
    return study


@functools.lru_cache(maxsize=16)
def _from_file(path: Path, changed_ns: int, size: int) -> Study:
    name = f"assay_study_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _importing(path.name, lambda: loader.exec_module(module))
    studies = [value for value in vars(module).values() if isinstance(value, Study)]
    if len(studies) != 1:
        raise AssayError(f"{path.name} defines {len(studies)} studies at module level; it must define one")
    return studies[0]


def _importing(what: str, execute: Any) -> Any:
    """Import a study's module; AssayError in one line for whatever that raises."""
    try:
        return execute()
    except AssayError as error:
        raise AssayError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
        raise AssayError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
