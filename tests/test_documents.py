"""What the documents promise: the README's study and commands, and a cluster.yaml that Ray accepts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_study_in_the_readme_is_the_one_that_is_tested():
    study = (ROOT / "tests" / "platform" / "mean_study.py").read_text(encoding="utf-8")
    assert study.strip() in README
    body = study.split('"""')[-1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 45


def test_the_library_works_as_the_readme_shows():
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    known = {"net": net, "images": torch.rand(12, 1, 4, 4), "labels": torch.arange(12) % 3}
    (snippet,) = re.findall(r"```python\n(from theory.curvature.*?)```", README, flags=re.DOTALL)
    exec(snippet, known)
    H = known["curvature"].matrix()
    assert torch.allclose(known["top"].values, torch.linalg.eigvalsh(H).flip(-1)[:, :20], atol=1e-6)
    mean = known["density"].expect(lambda nodes: nodes)
    assert float(mean.low) <= float(H.diagonal(dim1=1, dim2=2).mean()) <= float(mean.high)


def test_every_command_of_the_readme_exists_with_its_options():
    from assay.cli import app

    commands = {command.name or command.callback.__name__.rstrip("_"): command for command in app.registered_commands}
    shown = re.findall(r"^assay (\w+)(.*?)(?:#.*)?$", README, flags=re.MULTILINE)
    assert {name for name, _ in shown} == set(commands)
    for name, rest in shown:
        accepted = commands[name].callback.__annotations__
        for option in re.findall(r"--([a-z-]+)", rest):
            assert option in str(accepted) or option.replace("-", "_") in accepted, (name, option)


def test_make_targets_named_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`?make ([a-z]+)", (ROOT / document).read_text(encoding="utf-8")))
        assert named <= targets, (document, named - targets)


def test_pictures_and_files_that_the_readme_links_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_ray_accepts_the_cluster_file():
    yaml = pytest.importorskip("yaml")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(dict(config)))
    broken = dict(config) | {"head_node_type": "nobody"}
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(broken))
