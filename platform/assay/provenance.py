"""Where a number came from: code revision, library versions, device."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from assay.study import Study

LIBRARIES = ("assay", "ray", "torch", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn")


def of_run(study: Study) -> dict[str, Any]:
    """What is the same for every pack of a run: code revision and library versions."""
    libraries = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            libraries[library] = version(library)
        except PackageNotFoundError:
            continue
    return {"revision": revision(study), "libraries": libraries}


def revision(study: Study) -> str:
    """Git revision of the code that measures a study, with '-dirty' if it was changed since, else 'unknown'.

    Code that lies in a repository without being part of it (an installed package in a project's environment, a file
    not yet added) is 'unknown' too.
    """
    module = sys.modules.get(getattr(study.trials[0].run, "__module__", ""))
    source = getattr(module, "__file__", None)
    if source is None:
        return "unknown"
    path = Path(source).resolve()
    try:
        _git(path, "ls-files", "--error-unmatch", path.name)
        return _git(path, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(path: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=path.parent, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def device_name(device: str) -> str:
    """Name of the device a pack ran on."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} CPU"
