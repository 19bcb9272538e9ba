"""The house: which floor may import which, and that the folder `platform` hides nothing of Python's own."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "altair", "pandas", "duckdb", "scipy")

# folder → top-level packages that no module of it may import, at any depth or time
FORBIDDEN = {
    "theory": {"ray", "assay", "studies", "altair"},
    "studies": {"ray"},
    "platform/assay": {"theory", "studies"},
}
WHO_MAY_IMPORT_RAY = {"sweep.py", "train.py"}


def imported(path: Path) -> set[str]:
    """Top-level names of everything a module imports, also inside functions and for types only."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).split(".")[0])
    return names


def python(code: str) -> str:
    """Run code in a fresh interpreter in the root of the repository."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_each_floor_imports_only_from_floors_below(folder: str) -> None:
    modules = sorted((ROOT / folder).rglob("*.py"))
    assert modules
    for path in modules:
        assert not imported(path) & FORBIDDEN[folder], path


def test_only_the_sweep_and_training_import_ray() -> None:
    users = {path.name for path in (ROOT / "platform" / "assay").rglob("*.py") if "ray" in imported(path)}
    assert "sweep.py" in users
    assert users <= WHO_MAY_IMPORT_RAY


def test_import_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import ray.tune as t\ndef f():\n    from altair import Chart\nfrom . import near\nimport os, torch.nn\n"
    )
    assert imported(module) == {"ray", "altair", "os", "torch"}


def test_platform_is_a_folder_and_tests_are_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_standard_platform_module_works_in_the_root() -> None:
    import platform

    assert python("import platform; print(platform.system())").strip() == platform.system()


def test_import_of_assay_loads_nothing_heavy() -> None:
    loaded = json.loads(python(f"import sys, json, assay; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"))
    assert loaded == []


def test_lazy_names_are_there_when_asked_for() -> None:
    import assay

    for name in assay.__all__:
        assert getattr(assay, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tabel'"):
        _ = assay.tabel


def test_import_of_the_command_loads_nothing_heavy() -> None:
    loaded = json.loads(
        python(f"import sys, json, assay.cli; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))")
    )
    assert loaded == []
