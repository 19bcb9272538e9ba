"""Where a number came from: code revision, library versions, device."""

from __future__ import annotations

import inspect
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
    """Git revision of the code that declares a study, with '-dirty' if it was changed since, else 'unknown'."""
    source = inspect.getsourcefile(study.trials[0].run)
    folder = Path(source).parent if source else Path.cwd()
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def device_name(device: str) -> str:
    """Name of the device a pack ran on."""
    if device.startswith("cuda"):
        torch = sys.modules["torch"]
        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} CPU"
