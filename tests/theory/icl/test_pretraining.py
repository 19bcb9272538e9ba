from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from theory.ensemble import stream
from theory.icl import pretraining
from theory.icl.gpt import StackedGPT, gaussian_gpt
from theory.icl.layouts import NORMS, Architecture
from theory.icl.pretraining import PoolBatches, train_gpt

F64 = torch.float64
B = 4
PAIR = Architecture("pair", 5, 3, 2, d=8)


def data(shape: Architecture, *lead: int) -> tuple[Tensor, Tensor]:
    """Random symbols, [*lead, T]."""
    c, r = (torch.randint(n, (*lead, shape.T), generator=stream(n)) for n in (shape.inputs, shape.outputs))
    return c, r


def test_a_diverging_member_harms_nobody() -> None:
    shape = PAIR
    batch = data(shape, 3, B)
    model, calm = gaussian_gpt(shape, [1, 2, 3], dtype=F64), gaussian_gpt(shape, [1, 3], dtype=F64)
    model.parameters[1].fill_(math.nan)
    train_gpt(model, lambda _: batch, 5, rates=1e-2)
    train_gpt(calm, lambda _: tuple(t[[0, 2]] for t in batch), 5, rates=1e-2)
    assert model.parameters[1].isnan().all()
    torch.testing.assert_close(model.parameters[[0, 2]], calm.parameters, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_learns_to_copy_a_response_seen_before(norm: str) -> None:
    """r_i = (c_i + z) mod 3 for a hidden z: log 3 for a blind predictor, (log 3)/T for the Bayes predictor."""
    shape = Architecture("pair", 8, 3, 3, L=1, norm=norm)
    model = gaussian_gpt(shape, [0, 1])

    def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
        generator = stream("copy", step)
        c = torch.randint(3, (2, size, 8), generator=generator)
        return c, (c + torch.randint(3, (2, size, 1), generator=generator)) % 3

    seen = train_gpt(model, batch, 200, rates=2e-2, record=[0, 100, 199])
    losses = model.losses(*batch(-1, 200))
    assert float(seen.losses[0].min()) > 0.9 * math.log(3)
    assert float(losses.max()) < math.log(3) / 3
    assert float(losses.min()) > math.log(3) / 8 * 0.9


def test_pools_are_drawn_within_their_bounds_by_their_seed() -> None:
    c = torch.arange(40).unsqueeze(1).expand(40, 3)
    pool = PoolBatches(c, -c, 5, [10, 4, 10, 10], [1, 1, 1, 2], offsets=[0, 36, 0, 20])
    drawn = torch.stack([pool(step)[0] for step in range(150)])  # [steps, K, B, T]
    assert drawn.shape == (150, 4, 5, 3)
    assert torch.equal(pool(149)[1], -drawn[149])
    for k, (size, offset) in enumerate(zip(pool.sizes, pool.offsets, strict=True)):
        assert set(drawn[:, k].flatten().tolist()) == set(range(offset, offset + size))
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    alone = PoolBatches(c, -c, 5, [10], [2], offsets=[20])
    assert torch.equal(alone(130)[0][0], drawn[130, 3])
    counts = drawn[:, 0, :, 0].flatten().bincount()
    assert float(((counts - 75) ** 2 / 75).sum()) < 30  # χ² with 9 degrees of freedom: 99.95 %


def test_early_stopping_keeps_the_best_parameters_of_each_member() -> None:
    """A validation loss by plan: member 0 is best at the second check, member 1 at the last, member 2 never."""
    shape, history = PAIR, []
    planned = iter([[2.0, 3.0, math.nan], [1.0, 4.0, math.nan], [1.5, 2.0, math.nan], [1.0, 1.0, math.nan]])

    def validate(model: StackedGPT) -> Tensor:
        history.append(model.parameters.clone())
        return torch.tensor(next(planned))

    model = gaussian_gpt(shape, [1, 2, 3], dtype=F64)
    first, batch = model.parameters.clone(), data(shape, 3, B)
    seen = train_gpt(model, lambda _: batch, 10, rates=1e-2, record=[0, 7], validate=validate, every=3)
    assert seen.record == (0, 7)
    assert seen.losses.shape == (2, 3)
    assert seen.checks == (3, 6, 9, 10)
    assert seen.best_step.tolist() == [6, 10, 0]
    assert seen.validation[:, 0].tolist() == [2.0, 1.0, 1.5, 1.0]
    assert seen.best is not None
    expected = torch.stack([history[1][0], history[3][1], first[2]])
    assert torch.equal(seen.best, expected)
    assert torch.equal(model.parameters, history[3])


def test_early_stopping_helps_where_a_small_pool_is_learnt_by_heart() -> None:
    shape = Architecture("pair", 6, 3, 3, L=1)
    z = torch.randint(3, (300, 1), generator=stream("z"))
    c = torch.randint(3, (300, 6), generator=stream("c"))
    noise = torch.randint(3, (300, 6), generator=stream("noise")) * (torch.rand(300, 6, generator=stream("p")) < 0.3)
    r = (c + z + noise) % 3
    model = gaussian_gpt(shape, [0, 0])
    held_out = (c[200:], r[200:])
    seen = train_gpt(
        model,
        PoolBatches(c, r, 16, [16, 200], [0, 0]),
        150,
        rates=2e-2,
        validate=lambda stack: stack.losses(*held_out),
        every=15,
    )
    assert seen.best is not None
    final, best = model.losses(*held_out), model.with_parameters(seen.best).losses(*held_out)
    torch.testing.assert_close(best.double(), seen.validation.amin(0), rtol=1e-5, atol=0)
    assert float(final[0]) > float(best[0]) + 0.3
    assert float(final[0]) > float(final[1]) + 0.3


def test_members_at_a_time_fit_the_cache() -> None:
    small, large = (gaussian_gpt(Architecture("pair", T, 3, 3, d=d), [1]) for d, T in ((16, 16), (64, 64)))
    assert pretraining.members_at_a_time(small, 8) > pretraining.members_at_a_time(small, 32) > 1
    assert pretraining.members_at_a_time(large, 64) == 1
    elsewhere = gaussian_gpt(large.shape, [1, 2, 3], device="meta")
    assert pretraining.members_at_a_time(elsewhere, 64) == 3


def test_misuse_of_training_is_refused() -> None:
    shape = PAIR
    model, batch = gaussian_gpt(shape, [1, 2]), data(shape, B)

    def train(**options) -> None:
        train_gpt(model, lambda _: batch, **{"steps": 4, "rates": 1e-3} | options)

    for options, message in (
        ({"steps": 0}, "steps = 0 must be at least 1"),
        ({"record": [3, 1]}, r"record = \[3, 1\] must be increasing steps within 0..3"),
        ({"record": [4]}, "within 0..3"),
        ({"every": 2}, "needs both `validate` and every"),
        ({"rates": torch.ones(3)}, "rates must be one number ≥ 0 or one for each of the 2 members"),
        ({"rates": -1.0}, "rates must be one number ≥ 0"),
        ({"clip": math.nan}, "clip must be one number ≥ 0"),
        ({"betas": (0.9, 1.0)}, r"betas = \(0.9, 1.0\) must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            train(**options)
    with pytest.raises(ValueError, match="a pool of 5 sequences from 0 on does not lie within the 4 stored"):
        PoolBatches(*batch, 2, [4, 5], [0, 0])
    with pytest.raises(ValueError, match="one size, data seed and offset per member, got 2, 1 and 2"):
        PoolBatches(*batch, 2, [4, 4], [0])
    with pytest.raises(ValueError, match="batch = 0 must be at least 1"):
        PoolBatches(*batch, 0, [4], [0])


class Memory:
    """A team of one that keeps its state, and dies after some saves."""

    rank, size = 0, 1

    def __init__(self, lives: int = 1000) -> None:
        self.state, self.lives = None, lives

    def load(self):
        return self.state

    def save(self, state) -> None:
        # As a checkpoint does, this keeps what the tensors are now.
        self.state = copy.deepcopy(dict(state))
        self.lives -= 1
        if self.lives == 0:
            raise InterruptedError


def pool() -> PoolBatches:
    return PoolBatches(*data(PAIR, 20), B, [20, 10], [1, 2])


def trained(team: Memory | None, **options):
    model = gaussian_gpt(PAIR, [1, 2], dtype=F64)
    c, r = data(PAIR, 2, 6)
    seen = train_gpt(
        model, pool(), 9, rates=1e-2, record=(0, 5, 8), validate=lambda m: m.losses(c, r), every=2, team=team, **options
    )
    return model.parameters, seen


def test_training_goes_on_from_what_was_saved_as_if_nothing_had_happened() -> None:
    whole, seen = trained(None)
    team = Memory(lives=2)
    with pytest.raises(InterruptedError):
        trained(team, save_every=3)
    assert team.state["step"] == 6
    resumed, again = trained(team, save_every=3)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    assert (again.record, again.checks) == (seen.record, seen.checks)
    for name in ("losses", "validation", "best_step", "best"):
        torch.testing.assert_close(getattr(again, name), getattr(seen, name), rtol=0, atol=0)


def _member_of_a_team(rank: int, size: int, home: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{home}/meet", rank=rank, world_size=size)
    team = Memory()
    team.rank, team.size = rank, size
    parameters, seen = trained(team)
    torch.save({"parameters": parameters, "losses": seen.losses}, f"{home}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_what_one_does(tmp_path) -> None:
    torch.multiprocessing.spawn(_member_of_a_team, (2, str(tmp_path)), nprocs=2)
    whole, seen = trained(None)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        # Adam blows rounding up where a gradient is zero but for it.
        torch.testing.assert_close(found["parameters"], whole, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found["losses"], seen.losses, rtol=1e-12, atol=1e-12)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    team = Memory()
    team.size = 3
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared by 3 processes"):
        trained(team)
