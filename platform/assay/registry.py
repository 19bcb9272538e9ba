"""Finding studies: by the name of an installed entry point, or in a Python file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from assay.errors import AssayError, unknown
from assay.study import Study

GROUP = "assay.studies"


def available() -> dict[str, EntryPoint]:
    """Entry points of all installed studies, by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def load(reference: str) -> Study:
    """Load a study by its installed name, or from a `.py` file that defines one `Study` at module level.

    AssayError when there is no such study, when its module cannot be imported, or when a file holds none or several.
    """
    if reference.endswith(".py"):
        return _from_file(Path(reference))
    points = available()
    if reference not in points:
        raise unknown("study", reference, points)
    try:
        study = points[reference].load()
    except AssayError:
        raise
    except Exception as error:
        raise AssayError(f"study {reference!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(study, Study):
        raise AssayError(f"study {reference!r}: {points[reference].value} is a {type(study).__name__}, not a Study")
    if study.name != reference:
        raise AssayError(f"study {reference!r} calls itself {study.name!r}: name it as its entry point")
    return study


def _from_file(path: Path) -> Study:
    path = path.resolve()
    if not path.is_file():
        raise AssayError(f"no study file {str(path)!r}")
    name = f"assay_study_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except AssayError:
        raise
    except Exception as error:
        raise AssayError(f"{path.name} cannot be imported: {type(error).__name__}: {error}") from error
    studies = [value for value in vars(module).values() if isinstance(value, Study)]
    if len(studies) != 1:
        raise AssayError(f"{path.name} defines {len(studies)} studies at module level; it must define one")
    return studies[0]
