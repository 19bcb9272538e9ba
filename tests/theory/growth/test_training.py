from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from theory.ensemble import batch_indices, normal, stream
from theory.growth.expand import add_channels, insert_identity
from theory.growth.network import Architecture, GrowingCNN, initial, parameter_count
from theory.growth.training import Training, evaluate, order

A = Architecture((1, 8, 8), 3, (2, 2, 3), mixed=4, hidden=5)
N, BATCH = 23, 6  # three steps an epoch, five examples left over


def data(*lead: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images whose mean tells their class, with noise."""
    y = torch.randint(3, (*lead, N), generator=stream("test", "classes", *lead))
    return normal((*lead, N, 1, 8, 8), "test", "train", dtype=dtype) + (y - 1.0)[..., None, None, None].to(dtype), y


def started(seeds: list[int], data_seeds: list[int] | None = None, **settings: float) -> Training:
    net = initial(A, seeds, dtype=torch.float64)
    return Training(net, *data(), data_seeds or seeds, batch=BATCH, **({"rate": 0.01, "l1": 1e-3} | settings))


def same(a: GrowingCNN, b: GrowingCNN) -> bool:
    pairs = [(a.parameters, b.parameters), (a.buffers, b.buffers)]
    return a.architecture == b.architecture and all(
        torch.equal(t, theirs[name]) for mine, theirs in pairs for name, t in mine.items()
    )


def test_steps_are_those_of_torchs_adam() -> None:
    training = started([4])
    reference = training.net.copy()
    leaves = [p.requires_grad_() for p in reference.parameters.values()]
    adam = torch.optim.Adam(leaves, lr=0.01)
    x, y = data()
    for rows in batch_indices(N, BATCH, 8, 4):
        adam.zero_grad()
        f = reference.forward(x[rows], train=True, track=True)[0]
        loss = functional.cross_entropy(f, y[rows])
        (loss + 1e-3 * sum(p.abs().sum() for p in leaves)).backward()
        adam.step()
        torch.testing.assert_close(training.step(), loss.detach().unsqueeze(0), rtol=1e-10, atol=0)
    for tensors, others in (
        (training.net.parameters, reference.parameters),
        (training.net.buffers, reference.buffers),
    ):
        for name, t in tensors.items():
            torch.testing.assert_close(t, others[name], rtol=1e-9, atol=1e-11, msg=name)


def test_order_is_that_of_the_ensembles() -> None:
    rows = torch.cat([order(N, 7, epoch)[:18] for epoch in range(3)]).view(-1, BATCH)
    assert torch.equal(rows, batch_indices(N, BATCH, 9, 7))


def test_members_train_as_they_would_alone() -> None:
    together = started([4, 9, 5], [1, 2, 1])
    losses = together.run(7)
    for member, (seed, data_seed) in enumerate([(4, 1), (9, 2), (5, 1)]):
        alone = started([seed], [data_seed])
        torch.testing.assert_close(alone.run(7), losses[member : member + 1], rtol=1e-10, atol=0)
        for name, p in alone.net.parameters.items():
            torch.testing.assert_close(p[0], together.net.parameters[name][member], rtol=1e-9, atol=1e-11)


def test_members_with_data_of_their_own() -> None:
    x, y = data(2)
    net = initial(A, [4, 4], dtype=torch.float64)
    both = Training(net.copy(), x, y, [3, 3], batch=BATCH).run(4)
    for member in range(2):
        alone = Training(net.copy(members=slice(1)), x[member], y[member], [3], batch=BATCH)
        torch.testing.assert_close(alone.run(4), both[member : member + 1], rtol=1e-10, atol=0)


def grow(training: Training) -> None:
    training.run(4)
    training.expand(insert_identity(training.net, 1))
    training.run(1)
    training.expand(add_channels(training.net, 1, 2, seeds=[8]))
    training.run(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_run_taken_up_again_is_the_run_undisturbed(dtype: torch.dtype) -> None:
    x, y = data(dtype=dtype)
    undisturbed = Training(initial(A, [4], dtype=dtype), x, y, [6], batch=BATCH, rate=0.01, l1=1e-3)
    grow(undisturbed)
    file = io.BytesIO()
    torch.save(undisturbed.state(), file)
    expected = undisturbed.run(5)
    undisturbed.expand(add_channels(undisturbed.net, 3, 1, seeds=[9]))
    undisturbed.run(3)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = Training.resumed(state, x, y)
    assert torch.equal(again.run(5), expected)
    again.expand(add_channels(again.net, 3, 1, seeds=[9]))
    again.run(3)
    assert same(again.net, undisturbed.net)
    assert (again.steps, again.epoch, again.epoch_steps) == (15, 5, 3)
    third = Training.resumed(state, x, y)  # the second run left the state as it was
    assert torch.equal(third.run(5), expected)


def test_expansion_keeps_the_optimiser_of_old_numbers_and_starts_that_of_new_ones() -> None:
    training = started([4])
    training.run(5)
    before = training.state()
    expansion = add_channels(training.net, 1, 2, seeds=[8])
    training.expand(expansion)
    after = training.state()
    total = 0
    for name, places in expansion.places.items():
        if name not in before["parameters"]:
            continue
        new = torch.ones(after["first"][name][0].numel(), dtype=torch.bool)
        new[places.flatten()] = False
        total += int(new.sum())
        for part in ("parameters", "first", "second"):
            assert torch.equal(after[part][name].flatten()[places], before[part][name][0])
        for part in ("first", "second"):
            assert not after[part][name].flatten()[new].any()
        assert bool((after["ages"][name].flatten()[new] == 1).all())
        assert not after["ages"][name].flatten()[places].any()
    assert total == parameter_count(training.net.architecture) - parameter_count(A)
    assert after["born"] == (0, 5)
    assert after["steps"] == 5


def test_first_step_of_a_new_number_is_that_of_a_new_optimiser() -> None:
    """Adam's first step has the length of the rate, whatever the gradient: with an old step count it would be 3.16."""
    training = started([4], l1=0.0)
    training.run(200)
    expansion = add_channels(training.net, 1, 2, seeds=[8])
    training.expand(expansion)
    start = training.net.copy().parameters["mixed.weight"]
    training.step()
    moved = (training.net.parameters["mixed.weight"].detach() - start).abs().flatten()
    new = torch.ones(moved.numel(), dtype=torch.bool)
    new[expansion.places["mixed.weight"].flatten()] = False
    torch.testing.assert_close(moved[new], torch.full((8,), 0.01, dtype=torch.float64), rtol=1e-3, atol=0)


def test_training_with_an_inert_expansion_is_training_without() -> None:
    """A second member of the same network that never expands sees the same losses until new numbers have moved."""
    one, two = started([4], l1=0.0), started([4], l1=0.0)
    one.run(3), two.run(3)
    one.expand(add_channels(one.net, 2, 2, seeds=[8]))
    torch.testing.assert_close(one.step(), two.step(), rtol=1e-12, atol=0)
    old = insert_identity(two.net, 3)
    two.expand(old)
    assert not torch.equal(one.run(4), two.run(4))


def test_biases_that_batch_norm_cancels_stay_put() -> None:
    """Their gradient is zero, of which rounding leaves 1e-17, and Adam would make steps of full length of that."""
    net = initial(replace(A, head_norm=1), [4], dtype=torch.float64)
    training = Training(net, *data(), [4], batch=BATCH, rate=0.01)
    start = training.net.copy().parameters
    training.run(4)
    still = {name for name, p in training.net.parameters.items() if torch.equal(p, start[name])}
    assert still == {"block1.conv.bias", "block2.conv.bias", "block3.conv.bias", "hidden.bias"}
    x = data()[0]
    leaf = training.net.parameters["block1.conv.bias"]
    moved = training.net.copy()
    moved.parameters["block1.conv.bias"] += 1.0
    torch.testing.assert_close(moved.forward(x, train=True), training.net.forward(x, train=True).detach())
    assert not torch.autograd.grad(training.net.forward(x).sum(), leaf)[0].eq(0).any()  # in inference they do act


def test_it_learns() -> None:
    training = started([4, 5], rate=0.02, l1=0.0)
    x, y = data()
    loss, accuracy = evaluate(training.net, x, y)
    training.run(60)
    after, better = evaluate(training.net, x, y)
    assert (after < 0.5 * loss).all()
    assert (better > accuracy).all()


def test_l1_shrinks() -> None:
    sums = []
    for l1 in (0.0, 0.1):
        training = started([4], l1=l1)
        training.run(60)
        sums.append(float(sum(p.detach().abs().sum() for p in training.net.parameters.values())))
    assert sums[1] < 0.7 * sums[0]


def test_epochs() -> None:
    training = started([4])
    first = torch.stack([training.step(), training.step()])
    last = training.finish_epoch()
    assert training.epoch == 1
    whole = started([4])
    torch.testing.assert_close(whole.finish_epoch(), torch.cat([first, last.unsqueeze(0)]).mean(0), rtol=1e-12, atol=0)
    whole.finish_epoch()
    assert (whole.epoch, whole.steps) == (2, 6)


def test_epochs_of_a_given_length_are_the_same_steps_counted_otherwise() -> None:
    whole, counted = started([4]), started([4], epoch_steps=5)
    losses = torch.stack([whole.step() for _ in range(10)])
    first = counted.finish_epoch()
    resumed = Training.resumed(counted.state(), *data())
    torch.testing.assert_close(torch.stack([first, resumed.finish_epoch()]), losses.view(2, 5).mean(1)[:, None])
    assert (counted.epoch, resumed.epoch, whole.epoch) == (1, 2, 3)
    assert same(resumed.net, whole.net)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_evaluation_is_the_mean_over_examples(lead: tuple[int, ...]) -> None:
    x, y = data(*lead)
    net = initial(A, [4, 5], dtype=torch.float64)
    loss, accuracy = evaluate(net, x, y, rows=7)
    f = net.forward(x)
    for member in range(2):
        classes = y[member] if lead else y
        torch.testing.assert_close(loss[member], functional.cross_entropy(f[member], classes), rtol=1e-12, atol=0)
        assert float(accuracy[member]) * N == pytest.approx(int((f[member].argmax(1) == classes).sum()))


def test_a_full_batch_continues_from_a_state() -> None:
    training = started([4], l1=0.0)
    training.run(5)
    x, y = data()
    full = Training.resumed(training.state() | {"batch": N}, x, y)
    loss = full.step()
    expected = functional.cross_entropy(training.net.forward(x, train=True)[0], y)
    torch.testing.assert_close(loss[0], expected.detach(), rtol=1e-12, atol=0)


def test_errors() -> None:
    x, y = data()
    net = initial(A, [1, 2], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"2 members need as many data seeds, got \(1,\)"):
        Training(net, x, y, [1], batch=BATCH)
    for batch in (0, N + 1):
        with pytest.raises(ValueError, match=f"batch = {batch} must lie between 1 and the number of examples, 23"):
            Training(net, x, y, [1, 2], batch=batch)
    with pytest.raises(ValueError, match="epoch_steps = -1 must be positive, or 0 for one pass"):
        Training(net, x, y, [1, 2], batch=BATCH, epoch_steps=-1)
    for wrong in ((x, y[1:]), (x[:0], y[:0]), (x.expand(3, *x.shape), y.expand(3, -1)), (x[:, 0], y)):
        with pytest.raises(ValueError, match=r"must be \[N, c, h, w\] and \[N\], or both with K = 2"):
            evaluate(net, *wrong)
    with pytest.raises(ValueError, match=r"x must be torch\.float64 as the network is"):
        evaluate(net, x.float(), y)
    with pytest.raises(ValueError, match=r"classes in y must lie in 0\.\.2, got \d\.\.3"):
        evaluate(net, x, y + 1)
    training = Training(net, x, y, [1, 2], batch=BATCH)
    with pytest.raises(ValueError, match="steps = 0 must be at least 1"):
        training.run(0)
    stale = insert_identity(training.net, 1)
    training.step()
    other = insert_identity(initial(replace(A, classes=4), [1, 2], dtype=torch.float64), 1)
    for expansion in (stale, other):
        with pytest.raises(ValueError, match=r"expand `training\.net` as it is now"):
            training.expand(expansion)
    state = training.state()
    del state["first"]
    with pytest.raises(ValueError, match="the state of a run lacks first"):
        Training.resumed(state, x, y)
