from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from theory.ensemble import normal
from theory.growth.network import (
    EPSILON,
    MOMENTUM,
    SLOPE,
    UNIT_NORMS,
    Architecture,
    GrowingCNN,
    initial,
    parameter_count,
    standard_deviation,
)
from theory.growth.taps import jacobian

SMALL = Architecture((1, 8, 8), 10, (2, 2, 2))
UNEVEN = Architecture((2, 9, 8), 3, (3, 5, 2), (1, 0, 2), "fresh", mixed=4, hidden=6, head_norm=2)


def images(architecture: Architecture, N: int, *lead: int, seed: int = 0) -> Tensor:
    return normal((*lead, N, *architecture.image), "test", "images", seed)


def varied(architecture: Architecture, seeds: list[int]) -> GrowingCNN:
    """A network with no parameter or statistic at a special value."""
    net = initial(architecture, seeds, dtype=torch.float64)
    for name, t in (net.parameters | net.buffers).items():
        t += 0.3 * normal(t.shape, "test", "varied", name).abs()
    return net


class Written(nn.Module):
    """The paper's network from torch's own modules, with the units of `unit_norm`."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.blocks, below = nn.ModuleList(), a.image[0]
        for c, units in zip(a.widths, a.units, strict=True):
            block = [nn.Conv2d(below, c, 3, padding=1), nn.BatchNorm2d(c), nn.LeakyReLU(SLOPE)]
            for _ in range(units):
                block.append(nn.Conv2d(c, c, 3, padding=1, bias=False))
                if a.unit_norm != "none":
                    block.append(nn.BatchNorm2d(c))
                block.append(nn.LeakyReLU(SLOPE) if a.unit_norm == "fresh" else nn.PReLU(c))
            self.blocks.append(nn.Sequential(*block, nn.MaxPool2d(2)))
            below = c
        self.skip = nn.MaxPool2d(2 ** (a.blocks - 1))
        self.mixed = nn.Conv2d(a.widths[0] + a.widths[-1], a.mixed, 1)
        norms = [nn.BatchNorm1d(a.hidden) for _ in range(a.head_norm)]
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(a.features, a.hidden),
            *norms[:1],
            nn.LeakyReLU(SLOPE),
            *norms[1:],
            nn.Linear(a.hidden, a.classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        for block in list(self.blocks)[1:]:
            x = block(x)
        mixed = self.mixed(torch.cat([self.skip(first), x], 1))
        return self.head(nn.functional.leaky_relu(mixed, SLOPE))


def written(net: GrowingCNN, member: int) -> Written:
    """The same member from torch's modules: both list parameters and statistics in the order of the forward pass."""
    model = Written(net.architecture).double()
    with torch.no_grad():
        for mine, theirs in zip(net.parameters.values(), model.parameters(), strict=True):
            theirs.copy_(mine[member])
        statistics = [b for name, b in model.named_buffers() if not name.endswith("num_batches_tracked")]
        for mine, theirs in zip(net.buffers.values(), statistics, strict=True):
            theirs.copy_(mine[member])
    return model


@pytest.mark.parametrize("head_norm", [0, 1, 2])
@pytest.mark.parametrize("unit_norm", UNIT_NORMS)
def test_forward_is_the_network_written_with_modules(unit_norm: str, head_norm: int) -> None:
    architecture = replace(UNEVEN, unit_norm=unit_norm, head_norm=head_norm)
    net, x = varied(architecture, [3, 4]), images(architecture, 7)
    for member in range(2):
        expected = written(net, member).eval()(x)
        torch.testing.assert_close(net.forward(x)[member], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(net.forward(x, ordered=True)[member], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unit_norm", ["none", "fresh"])
def test_training_mode_uses_and_tracks_the_batch(unit_norm: str) -> None:
    architecture = replace(UNEVEN, unit_norm=unit_norm)
    net, x = varied(architecture, [3]), images(architecture, 7)
    model = written(net, 0).train()
    before = {name: t.clone() for name, t in net.buffers.items()}
    f = net.forward(x, train=True)
    assert all(torch.equal(t, before[name]) for name, t in net.buffers.items())
    torch.testing.assert_close(net.forward(x, train=True, track=True), f, rtol=0, atol=0)
    torch.testing.assert_close(f[0], model(x), rtol=1e-12, atol=1e-12)
    statistics = [b for name, b in model.named_buffers() if not name.endswith("num_batches_tracked")]
    for mine, theirs in zip(net.buffers.values(), statistics, strict=True):
        torch.testing.assert_close(mine[0], theirs, rtol=1e-12, atol=1e-12)
    norm = model.blocks[0][1]
    assert (norm.momentum, norm.eps) == (MOMENTUM, EPSILON)


def test_calibrated_norms_stay_in_inference_mode() -> None:
    architecture = replace(UNEVEN, unit_norm="calibrated", head_norm=0)
    net, x = varied(architecture, [3]), images(architecture, 7)
    model = written(net, 0).train()
    for block in model.blocks:
        for norm in [module for module in block if isinstance(module, nn.BatchNorm2d)][1:]:
            norm.eval()
    before = net.buffers["block1.unit1.norm.mean"].clone()
    torch.testing.assert_close(net.forward(x, train=True, track=True)[0], model(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(net.buffers["block1.unit1.norm.mean"], before)


@pytest.mark.parametrize(
    ("units", "count"), [((0, 0, 0), 9024), ((1, 0, 0), 9024 + 9 * 16**2 + 2 * 16), ((1, 0, 1), 13696)]
)
def test_the_papers_networks_have_the_counts_of_its_figure_3(units: tuple[int, ...], count: int) -> None:
    architecture = Architecture((3, 32, 32), 10, (16, 16, 16), units, "fresh", head_norm=2)
    assert parameter_count(architecture) == count == sum(p.numel() for p in Written(architecture).parameters())


@pytest.mark.parametrize("head_norm", [0, 1, 2])
@pytest.mark.parametrize("unit_norm", UNIT_NORMS)
def test_count_is_that_of_the_shapes(unit_norm: str, head_norm: int) -> None:
    architecture = replace(UNEVEN, unit_norm=unit_norm, head_norm=head_norm)
    shapes = architecture.parameters().values()
    assert parameter_count(architecture) == sum(torch.Size(shape).numel() for shape in shapes)


def test_small_network_for_digits() -> None:
    # Convs 1→2→2→2 with bias and norm, the 1×1 conv of 2 + 2 channels, and 10 → 20 → classes on one place.
    for classes in (2, 5, 10):
        expected = (18 + 2 + 4) + 2 * (36 + 2 + 4) + (40 + 10) + (200 + 20) + 21 * classes
        assert parameter_count(replace(SMALL, classes=classes)) == expected
    assert SMALL.features == 10


def test_members_are_what_they_are_alone() -> None:
    net, x = varied(UNEVEN, [3, 4, 5]), images(UNEVEN, 6)
    own = torch.stack([x, 2 * x, x.flip(0)])
    for train in (False, True):
        together, shared = net.forward(own, train=train), net.forward(x, train=train)
        for member in range(3):
            alone = net.copy(members=slice(member, member + 1))
            assert alone.members == 1
            torch.testing.assert_close(
                alone.forward(own[member], train=train)[0], together[member], rtol=1e-12, atol=1e-12
            )
            torch.testing.assert_close(alone.forward(x, train=train)[0], shared[member], rtol=1e-12, atol=1e-12)


def test_initial_numbers_depend_on_the_seed_alone() -> None:
    wider = replace(UNEVEN, classes=4)
    for first, second in (
        (initial(UNEVEN, [3, 7]), initial(UNEVEN, [7])),
        (initial(UNEVEN, [3, 7]), initial(wider, [7])),
    ):
        for name, p in first.parameters.items():
            if second.parameters[name].shape[1:] == p.shape[1:]:
                assert torch.equal(p[1], second.parameters[name][0])
    assert not torch.equal(first.parameters["mixed.weight"][0], first.parameters["mixed.weight"][1])
    single, double = initial(UNEVEN, [3]), initial(UNEVEN, [3], dtype=torch.float64)
    torch.testing.assert_close(single.parameters["mixed.weight"].double(), double.parameters["mixed.weight"])


def test_initial_weights_have_the_variance_they_should() -> None:
    net = initial(replace(SMALL, widths=(40, 40, 40)), [0], dtype=torch.float64)
    for name, times in (("block2.conv.weight", 2.0), ("mixed.weight", 2.0), ("readout.weight", 1.0)):
        w = net.parameters[name]
        fan_in = w[0, 0].numel()
        spread = 5 * (2 / w.numel()) ** 0.5  # five standard errors of a variance
        assert float(w.square().mean()) * fan_in == pytest.approx(times, rel=spread)


@pytest.mark.parametrize("unit_norm", UNIT_NORMS)
def test_taps_give_the_jacobian_of_every_parameter(unit_norm: str) -> None:
    architecture = replace(UNEVEN, unit_norm=unit_norm)
    net, x = varied(architecture, [3, 4]), images(architecture, 4)
    f, taps = net.taps(x)
    torch.testing.assert_close(f, net.forward(x), rtol=1e-12, atol=1e-12)
    assert [name for tap in taps for name in tap.parameters] == list(architecture.parameters())
    assert [tap.name for tap in taps if tap.kind == "site"] == ["block1.site", "block2.site", "block3.site"]
    J = jacobian(f, taps)
    model = written(net, 1).eval()
    for n, c in ((0, 0), (3, 2)):
        row = torch.autograd.grad(model(x)[n, c], list(model.parameters()))
        expected = torch.cat([g.flatten() for g in row])
        torch.testing.assert_close(J[1, n * architecture.classes + c], expected, rtol=1e-10, atol=1e-12)


def test_taps_from_a_later_block_are_those_of_the_whole_pass() -> None:
    net, x = initial(UNEVEN, [0, 1], dtype=torch.float64), images(UNEVEN, 4)
    f, taps = net.taps(x)
    known = {tap.name: tap for tap in taps}
    for block in range(2, UNEVEN.blocks + 1):
        tail_f, tail = net.taps(x, (block, known))
        assert torch.equal(tail_f, f)
        assert [tap.name for tap in tail] == [tap.name for tap in taps][-len(tail) :]
        assert tail[0].name == f"block{block}.conv"
        for tap in tail:
            assert torch.equal(tap.inputs, known[tap.name].inputs)
    for block in (1, UNEVEN.blocks + 1):
        with pytest.raises(ValueError, match=rf"a pass can start at blocks 2 to {UNEVEN.blocks}, not at {block}"):
            net.taps(x, (block, known))
    with pytest.raises(ValueError, match="known are 4 examples, but the images are"):
        net.taps(x[:3], (2, known))


def test_taps_leave_the_network_alone() -> None:
    net = varied(UNEVEN, [3])
    before = net.copy()
    with torch.no_grad():
        f, taps = net.taps(images(UNEVEN, 4))
    assert f.requires_grad
    assert not any(tap.inputs.requires_grad for tap in taps)
    for mine, theirs in ((net.parameters, before.parameters), (net.buffers, before.buffers)):
        assert all(torch.equal(t, theirs[name]) and not t.requires_grad for name, t in mine.items())


def test_copy_in_another_precision() -> None:
    net = initial(SMALL, [1])
    copy = net.copy(torch.float64)
    copy.parameters["readout.bias"] += 1
    assert (net.dtype, copy.dtype) == (torch.float32, torch.float64)
    assert not net.parameters["readout.bias"].any()


def test_standard_deviation() -> None:
    torch.testing.assert_close(standard_deviation(torch.tensor([4.0 - EPSILON])), torch.tensor([2.0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (2,)}, "two or more"),
        ({"units": (1, 1)}, "must name the same blocks"),
        ({"units": (0, -1, 0)}, "not negative"),
        ({"classes": 0}, "must be positive"),
        ({"unit_norm": "batch"}, "unit_norm = 'batch' must be one of none, calibrated, fresh"),
        ({"head_norm": 3}, "head_norm = 3"),
        ({"image": (1, 8, 7)}, "does not survive 3 halvings: its sides must be at least 8"),
    ],
)
def test_architectures_that_make_no_network(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_errors() -> None:
    net = initial(SMALL, [1, 2])
    with pytest.raises(ValueError, match="at least one seed"):
        initial(SMALL, [])
    with pytest.raises(ValueError, match="pass train=True with track=True"):
        net.forward(torch.zeros(4, 1, 8, 8), track=True)
    for wrong in (torch.zeros(4, 8, 8), torch.zeros(3, 4, 1, 8, 8), torch.zeros(4, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"images must be .* with K = 2 and \(c, h, w\) = \(1, 8, 8\)"):
            net.forward(wrong)
    with pytest.raises(ValueError, match="a network needs parameters"):
        GrowingCNN(SMALL, {}, {})
    with pytest.raises(ValueError, match=r"block1\.unit1\.conv\.weight, block1\.unit1\.slope missing or unknown"):
        GrowingCNN(replace(SMALL, units=(1, 0, 0)), net.parameters, net.buffers)
    with pytest.raises(ValueError, match=r"block1\.conv\.weight must be \[2, 3, 1, 3, 3\], got \[2, 2, 1, 3, 3\]"):
        GrowingCNN(replace(SMALL, widths=(3, 2, 2)), net.parameters, net.buffers)
