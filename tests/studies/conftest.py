"""What the tests of studies share: the study of a module, measured."""

from __future__ import annotations

import pandas as pd
import pytest

from assay.plan import plan
from assay.results import Tables


@pytest.fixture(scope="module")
def measured(request: pytest.FixtureRequest) -> Tables:
    """All trials of the module's `study` at smoke scale, in this process."""
    study, frames = request.module.study, {}
    for pack in plan(study, "smoke"):
        for name, frame in study.run_pack(pack).items():
            frames.setdefault(name, []).append(frame)
    found = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    return Tables(study, found.__getitem__)
