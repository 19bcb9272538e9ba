from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from theory.ensemble import normal
from theory.growth.expand import (
    CHANNEL_RECIPES,
    COEFFICIENT,
    Expansion,
    add_channels,
    change,
    insert_identity,
    new_filters,
)
from theory.growth.network import SLOPE, Architecture, GrowingCNN, initial, parameter_count

BLOCKS = (1, 2, 3)
BASE = Architecture((1, 8, 8), 4, (2, 3, 5), (1, 0, 2), mixed=4, hidden=5)


def network(unit_norm: str = "none", dtype: torch.dtype = torch.float64) -> GrowingCNN:
    """Two members with parameters and statistics like those of a network in training."""
    net = initial(replace(BASE, unit_norm=unit_norm, head_norm=1), [1, 2], dtype=dtype)
    for name, t in (net.parameters | net.buffers).items():
        if not name.endswith("weight"):
            t += 0.2 * normal(t.shape, "test", "expand", name, dtype=dtype).abs()
    return net


def images(N: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal((N, 1, 8, 8), "test", "expand images", dtype=dtype)


def grown(net: GrowingCNN, block: int, kind: str, recipe: str = "exact") -> Expansion:
    if kind == "identity":
        return insert_identity(net, block, recipe, data=images(5, net.dtype), seeds=[5, 6])
    return add_channels(net, block, 2, recipe, seeds=[5, 6])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("unit_norm", ["none", "calibrated"])
@pytest.mark.parametrize("kind", ["identity", "channels"])
def test_exact_expansions_change_nothing_at_all(kind: str, unit_norm: str, dtype: torch.dtype) -> None:
    net, x = network(unit_norm, dtype), images(dtype=dtype)
    for block in BLOCKS:
        after = grown(net, block, kind).net
        assert parameter_count(after.architecture) > parameter_count(net.architecture)
        for train in (False, True):
            assert not change(net, after, x, train=train).any()
            tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # of sums in another order
            torch.testing.assert_close(
                after.forward(x, train=train), net.forward(x, train=train), rtol=tolerance, atol=tolerance
            )


def test_channels_are_exact_with_fresh_units_too() -> None:
    net, x = network("fresh"), images()
    for block in BLOCKS:
        for train in (False, True):
            assert not change(net, grown(net, block, "channels").net, x, train=train).any()


@pytest.mark.parametrize("kind", ["identity", "channels"])
def test_what_is_new_can_learn(kind: str) -> None:
    """The loss feels a change of the new parameters: the expansion is no dead weight."""
    net, x = network(), images()
    for block in BLOCKS:
        expansion = grown(net, block, kind)
        moved = expansion.net.copy()
        for name, p in moved.parameters.items():
            new = torch.ones(p[0].numel(), dtype=torch.bool)
            if name in expansion.places:
                new[expansion.places[name].flatten()] = False
            p.view(2, -1)[:, new] += 0.1
        assert (change(net, moved, x, train=False) > 1e-3).all()


def test_papers_recipe_is_approximate() -> None:
    net, x = network("fresh"), images(64)
    scale = float(net.forward(x).detach().abs().max())
    for block in BLOCKS:
        channels = [change(net, grown(net, block, "channels", "paper").net, x, train=t) for t in (False, True)]
        assert all(0 < float(D.min()) <= float(D.max()) < 0.02 * scale for D in channels)
        evaluated, trained = (
            change(net, grown(net, block, "identity", "paper").net, x, train=t) for t in (False, True)
        )
        assert (evaluated > 0).all()
        assert (evaluated < 0.05 * scale).all()
        # Its batch norm starts on the batch's statistics, not on what makes it the identity.
        assert (trained > 5 * evaluated).all()


def test_noise_of_the_papers_identity() -> None:
    net = network("fresh")
    name = "block2.unit1.conv.weight"
    dirac = insert_identity(net, 2, "paper", seeds=[5, 6], noise=0.0).net.parameters[name]
    noisy = insert_identity(net, 2, "paper", seeds=[5, 6]).net.parameters[name]
    expected = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    expected[[0, 1, 2], [0, 1, 2], 1, 1] = 1
    assert torch.equal(dirac, expected.expand(2, -1, -1, -1, -1))
    noise = (noisy - dirac) / COEFFICIENT
    assert float(noise.square().mean()) == pytest.approx(1, abs=5 * (2 / noise.numel()) ** 0.5)


def test_known_errors_are_seen() -> None:
    net, x = network(), images()
    for block in BLOCKS:
        wrong = [grown(net, block, "identity", "box"), grown(net, block, "channels", "outgoing")]
        if block != 2:
            wrong.append(grown(net, block, "channels", "misplaced"))
        for expansion in wrong:
            for train in (False, True):
                assert (change(net, expansion.net, x, train=train) > 1e-2).all()


def test_box_kernel_sums_the_neighbourhood() -> None:
    net, x = network(), images()
    before = next(tap for tap in net.taps(x)[1] if tap.name == "block2.site").inputs
    after = next(tap for tap in insert_identity(net, 2, "box").net.taps(x)[1] if tap.name == "block2.site").inputs
    sums = torch.nn.functional.avg_pool2d(before.flatten(0, 1), 3, 1, 1, divisor_override=1).view_as(before)
    torch.testing.assert_close(after, sums)


def test_calibrated_norm_is_the_identity_on_its_data() -> None:
    net, x = network("calibrated"), images()
    after = insert_identity(net, 2, data=x).net
    read = next(tap for tap in net.taps(x)[1] if tap.name == "block2.site").inputs
    normalised = next(tap for tap in after.taps(x)[1] if tap.name == "block2.unit1.norm").inputs
    torch.testing.assert_close(normalised.mean((1, 3, 4)), torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    variance = read.var((1, 3, 4), correction=0)
    torch.testing.assert_close(normalised.var((1, 3, 4), correction=0), variance / (variance + 1e-5))


@pytest.mark.parametrize("recipe", CHANNEL_RECIPES)
@pytest.mark.parametrize("kind", ["identity", "channels"])
def test_expansion_and_removal_return_the_same_bits(kind: str, recipe: str) -> None:
    if kind == "identity" and recipe in ("outgoing", "misplaced"):
        recipe = "box"
    net = network("fresh" if recipe == "paper" else "calibrated")
    before = net.copy()
    for block in (1, 3):
        expansion = grown(net, block, kind, recipe)
        back = expansion.removed()
        assert back.architecture == before.architecture
        for mine, theirs in ((back.parameters, before.parameters), (back.buffers, before.buffers)):
            assert all(torch.equal(t, theirs[name]) for name, t in mine.items())
        for tensors in (expansion.net.parameters, expansion.net.buffers):
            for t in tensors.values():
                t += 1  # the new network owns its tensors
        assert all(torch.equal(p, before.parameters[name]) for name, p in net.parameters.items())


def test_removal_from_a_network_that_was_trained_on() -> None:
    net = network()
    expansion = grown(net, 1, "channels")
    moved = expansion.net.copy()
    for p in moved.parameters.values():
        p += 1
    back = expansion.removed(moved)
    for name, p in net.parameters.items():
        torch.testing.assert_close(back.parameters[name], p + 1, rtol=0, atol=0)


@pytest.mark.parametrize("kinds", [("channels", "channels"), ("identity", "channels"), ("identity", "identity")])
def test_order_of_expansions_does_not_matter(kinds: tuple[str, str]) -> None:
    net, x = network(), images()
    one = grown(grown(net, 1, kinds[0]).net, 3, kinds[1]).net
    two = grown(grown(net, 3, kinds[1]).net, 1, kinds[0]).net
    assert one.architecture == two.architecture
    assert all(torch.equal(p, two.parameters[name]) for name, p in one.parameters.items())
    assert not change(net, one, x, train=True).any()


def test_carried_tensors_go_with_their_numbers() -> None:
    """Every number of the old network is found, in the new one, where carry puts a mark of it."""
    net = network()
    for block, kind in ((1, "channels"), (2, "channels"), (3, "channels"), (2, "identity")):
        expansion = grown(net, block, kind)
        carried = expansion.carry(net.parameters, fill=torch.nan)
        old = 0
        for name, p in expansion.net.parameters.items():
            kept = ~carried[name].isnan()
            assert torch.equal(carried[name][kept], p[kept])
            old += int(kept[0].sum())
        assert old == parameter_count(net.architecture)


def test_new_channels_enter_the_concatenation_after_those_of_their_block() -> None:
    net = network()
    old = net.parameters["mixed.weight"][..., 0, 0]  # inputs: 2 of block 1, then 5 of block 3
    zeros = torch.zeros(2, 4, 2, dtype=torch.float64)
    first = grown(net, 1, "channels").net.parameters["mixed.weight"][..., 0, 0]
    last = grown(net, 3, "channels").net.parameters["mixed.weight"][..., 0, 0]
    assert torch.equal(first, torch.cat([old[..., :2], zeros, old[..., 2:]], 2))
    assert torch.equal(last, torch.cat([old, zeros], 2))
    assert torch.equal(grown(net, 1, "channels", "misplaced").net.parameters["mixed.weight"][..., 0, 0], last)
    assert torch.equal(grown(net, 3, "channels", "misplaced").net.parameters["mixed.weight"][..., 0, 0], first)


def test_expansions_by_more_channels_contain_those_by_fewer() -> None:
    net, x = network(), images()
    few, many = (add_channels(net, 3, k, seeds=[5, 6]).net for k in (1, 4))
    values = [next(tap for tap in grown.taps(x)[1] if tap.name == "block3.site").inputs for grown in (few, many)]
    torch.testing.assert_close(values[1][:, :, :6], values[0], rtol=1e-12, atol=1e-12)
    filters = new_filters(net, 3, 4, [5, 6])
    assert [tuple(t.shape) for t in filters.values()] == [(2, 4, 3, 3, 3), (2, 4, 9, 3, 3), (2, 4, 9, 3, 3)]
    assert not torch.equal(filters["block3.conv.weight"][0], filters["block3.conv.weight"][1])
    for channel in range(4):
        inside = filters["block3.unit1.conv.weight"][:, channel]
        assert not inside[:, 5 + channel + 1 :].any()
        assert inside[:, : 5 + channel + 1].all()


def test_incoming_weights_keep_the_variance_of_what_they_read() -> None:
    net = initial(replace(BASE, widths=(30, 2, 2)), [0], dtype=torch.float64)
    for name, block in (("block2.conv.weight", 2), ("block1.unit1.conv.weight", 1)):
        for channel, w in enumerate(new_filters(net, block, 8, [3])[name][0]):
            drawn = w[: 30 + channel + 1 if block == 1 else 30]
            spread = 5 * (2 / drawn.numel()) ** 0.5
            assert float(drawn.square().mean()) * drawn.numel() == pytest.approx(1, rel=spread)


def test_given_filters_are_used() -> None:
    net, x = network(), images()
    filters = {name: torch.full_like(t, 0.5) for name, t in new_filters(net, 1, 2, [5, 6]).items()}
    expansion = add_channels(net, 1, 2, seeds=[5, 6], filters=filters)
    for name, t in filters.items():
        assert torch.equal(expansion.net.parameters[name][:, 2:], t)
    assert not change(net, expansion.net, x, train=True).any()
    assert bool((expansion.net.parameters["block1.unit1.slope"][:, 2:] == SLOPE).all())


def test_errors() -> None:
    net, fresh, calibrated = network(), network("fresh"), network("calibrated")
    with pytest.raises(ValueError, match=r"block = 4 does not exist: there are blocks 1\.\.3"):
        insert_identity(net, 4)
    with pytest.raises(ValueError, match="unknown recipe 'outgoing'; there is exact, paper, box"):
        insert_identity(net, 1, "outgoing")
    with pytest.raises(ValueError, match="'exact' does not insert units of unit_norm 'fresh'"):
        insert_identity(fresh, 1)
    with pytest.raises(ValueError, match="'paper' does not insert units of unit_norm 'none'"):
        insert_identity(net, 1, "paper", seeds=[1, 2])
    with pytest.raises(ValueError, match='"calibrated" needs data'):
        insert_identity(calibrated, 1)
    for seeds in (None, [1]):
        with pytest.raises(ValueError, match="2 members need as many seeds"):
            insert_identity(fresh, 1, "paper", seeds=seeds)
    with pytest.raises(ValueError, match="2 members need as many seeds"):
        add_channels(net, 1, 2, seeds=[1])
    with pytest.raises(ValueError, match="k = 0 channels cannot be added"):
        add_channels(net, 1, 0, seeds=[1, 2])
    with pytest.raises(ValueError, match="only block 1 and 3 can be misplaced"):
        add_channels(net, 2, 1, "misplaced", seeds=[1, 2])
    with pytest.raises(ValueError, match="filters cannot be given"):
        add_channels(net, 1, 1, "paper", seeds=[1, 2], filters={})
    with pytest.raises(ValueError, match=r"filters must be {'block1\.conv\.weight': \[2, 1, 1, 3, 3\]"):
        add_channels(net, 1, 1, seeds=[1, 2], filters={})
    expansion = insert_identity(net, 1)
    with pytest.raises(ValueError, match="cannot be taken out of"):
        expansion.removed(net)
    with pytest.raises(ValueError, match="shaped as the parameters of"):
        expansion.carry(expansion.net.parameters)
