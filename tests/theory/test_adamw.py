"""AdamW of K networks at once, and the schedule of the rates."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from theory.ensemble import StackedAdamW, normal, schedule

F64 = torch.float64


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_torchs_adamw(decay: float) -> None:
    start = normal((2, 5), "start")
    stacked = StackedAdamW(start.clone(), torch.tensor([0.1, 0.02], dtype=F64), weight_decay=decay)
    alone = [row.clone().requires_grad_() for row in start]
    groups = [{"params": [row], "lr": rate} for row, rate in zip(alone, (0.1, 0.02), strict=True)]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, weight_decay=decay)
    for step in range(5):
        gradients = normal((2, 5), "gradients", step)
        for row, gradient in zip(alone, gradients, strict=True):
            row.grad = gradient.clone()
        adam.step()
        stacked.step(gradients)
        torch.testing.assert_close(
            stacked.parameters, torch.stack([row.detach() for row in alone]), rtol=1e-12, atol=1e-12
        )


def test_rates_decay_and_clipping_act_on_their_member_alone() -> None:
    """The first Adam step is −rate · sign(g), whatever the clip; the second moves with the clipped history."""
    g = normal((4, 6), "gradients")
    p = normal((4, 6), "parameters")
    after = p.clone()
    rates, decays = torch.tensor([0.0, 0.1, 0.2, 0.2], dtype=F64), torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=F64)
    StackedAdamW(after, rates, weight_decay=decays).step(g.clone(), 0.5)
    expected = p - 0.5 * rates[:, None] * (g.sign() + decays[:, None] * p)
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-6)

    clip = torch.tensor([math.inf, 1e-2, 1e6, 0.0], dtype=F64)
    free, clipped = StackedAdamW(p.clone(), 0.1), StackedAdamW(p.clone(), 0.1, clip=clip)
    for adam in (free, clipped):
        adam.step(g.clone())
        adam.step(-0.3 * g)
    same = (free.parameters == clipped.parameters).all(1)
    assert same.tolist() == [True, False, True, False]
    torch.testing.assert_close(
        clipped.m[1].norm(), torch.tensor((0.9 * 0.1 - 0.1) * 1e-2, dtype=F64).abs(), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(clipped.parameters[3], p[3])


def test_schedule_rises_to_one_and_falls_as_a_cosine() -> None:
    factors = [schedule(step, 200) for step in range(200)]
    assert factors[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert factors[10:] == pytest.approx([(1 + math.cos(math.pi * s / 190)) / 2 for s in range(190)])
    assert max(factors) == 1
    assert 0 < factors[-1] < 1e-3
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert schedule(0, 1) == 1
    assert schedule(0, 7, warmup=0.0) == 1


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"step = 4 must lie in 0\.\.3"):
        schedule(4, 4)
    with pytest.raises(ValueError, match="rates must be one number ≥ 0 or one for each of the 2 members"):
        StackedAdamW(torch.zeros(2, 3), torch.ones(3))
