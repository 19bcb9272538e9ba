"""Provenance: the revision of the code that measures, and the versions it ran with."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import pytest

from assay import provenance
from assay.registry import load
from assay.study import Study

MEAN = Path(__file__).with_name("mean_study.py")


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def study_in_git(tmp_path: Path) -> tuple[Path, Study]:
    """A study file in a repository of its own."""
    path = tmp_path / "own_study.py"
    path.write_text(MEAN.read_text())
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", path.name)
    git(tmp_path, "commit", "--quiet", "--message", "a study")
    return path, load(str(path))


def test_revision_is_the_commit_and_says_when_it_was_changed(study_in_git: tuple[Path, Study]) -> None:
    path, study = study_in_git
    head = git(path.parent, "rev-parse", "HEAD")
    assert provenance.revision(study) == head[:12]
    git(path.parent, "tag", "v1")
    assert provenance.revision(study) == head[:12]  # a name may move, a commit does not
    path.write_text(path.read_text() + "# changed\n")
    assert provenance.revision(study) == f"{head[:12]}-dirty"


def test_code_that_is_no_part_of_a_repository_has_no_revision(study_in_git: tuple[Path, Study], tmp_path: Path) -> None:
    stray = tmp_path / "stray_study.py"  # inside the repository's folder, as an installed package may be
    stray.write_text(MEAN.read_text())
    assert provenance.revision(load(str(stray))) == "unknown"


def test_code_without_a_file_has_no_revision() -> None:
    study = load(str(MEAN))
    wrapped = dataclasses.replace(study.trials[0], run=functools.partial(study.trials[0].run))
    assert provenance.revision(dataclasses.replace(study, trials=(wrapped,))) == "unknown"


def test_a_run_names_the_versions_it_ran_with() -> None:
    found = provenance.of_run(load(str(MEAN)))
    assert set(found) == {"revision", "libraries"}
    assert found["libraries"]["python"] == platform.python_version()
    for name in ("numpy", "ray", "torch"):
        assert found["libraries"][name] == importlib.metadata.version(name)


def test_device_of_a_pack_on_the_cpu() -> None:
    assert provenance.device_name("cpu") == f"{platform.machine()} CPU"
