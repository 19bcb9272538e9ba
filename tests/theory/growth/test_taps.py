"""Jacobian rows from taps against autograd, and what a tap refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from theory.ensemble.seeding import normal
from theory.growth.taps import Tap, jacobian, patches, pull_back, rows, unfold, with_parameters

K, N, C = 2, 5, 3
SHAPES = {  # a net with every kind of place: conv with and without bias, frozen norm, slope, skip, linear
    "conv0": (4, 2, 3, 3),
    "bias0": (4,),
    "gamma": (4,),
    "beta": (4,),
    "conv1": (4, 4, 3, 3),
    "slope": (4,),
    "mix": (3, 8, 1, 1),
    "mix_bias": (3,),
    "linear": (C, 12),
    "linear_bias": (C,),
}


def parameters(member: int) -> dict[str, Tensor]:
    return {name: (0.5 * normal(shape, name, member)).requires_grad_() for name, shape in SHAPES.items()}


def forward_one(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """The reference: one member, written with torch's own layers, no taps."""
    z = functional.conv2d(x, p["conv0"], p["bias0"], padding=1)
    normed = (z - 0.1) / 1.3 * p["gamma"].view(-1, 1, 1) + p["beta"].view(-1, 1, 1)
    first = functional.max_pool2d(functional.leaky_relu(normed, 0.1), 2)
    second = functional.prelu(functional.conv2d(first, p["conv1"], padding=1), p["slope"])
    mixed = functional.conv2d(torch.cat([first, second], 1), p["mix"], p["mix_bias"])
    return functional.linear(functional.max_pool2d(torch.tanh(mixed), 1).flatten(1), p["linear"], p["linear_bias"])


def forward_tapped(members: list[dict[str, Tensor]], x: Tensor) -> tuple[Tensor, list[Tap]]:
    """The same with a tap at every place, all members in one forward pass of grouped convolutions."""
    p = {name: torch.stack([member[name] for member in members]) for name in SHAPES}
    taps: list[Tap] = []

    def conv(name: str, h: Tensor, padding: int, *names: str) -> Tensor:
        packed = h.transpose(0, 1).flatten(1, 2)
        bias = p[names[1]].flatten() if len(names) == 2 else None
        z = functional.conv2d(packed, p[names[0]].flatten(0, 1), bias, padding=padding, groups=K)
        z = z.unflatten(1, (K, -1)).transpose(0, 1)
        taps.append(Tap(name, "conv", names, h.detach(), z, p[names[0]].shape[-1], padding))
        return z

    z = conv("first", x.expand(K, *x.shape), 1, "conv0", "bias0")
    xhat = (z - 0.1) / 1.3
    z = xhat * p["gamma"][:, None, :, None, None] + p["beta"][:, None, :, None, None]
    taps.append(Tap("norm", "scale", ("gamma", "beta"), xhat.detach(), z))
    first = functional.max_pool2d(functional.leaky_relu(z, 0.1).flatten(0, 1), 2).unflatten(0, (K, N))
    z = conv("second", first, 1, "conv1")
    negative = z.clamp(max=0)
    second = z.clamp(min=0) + p["slope"][:, None, :, None, None] * negative
    taps.append(Tap("slope", "scale", ("slope",), negative.detach(), second))
    taps.append(Tap("end", "site", (), second.detach(), second))
    mixed = conv("mix", torch.cat([first, second], 2), 0, "mix", "mix_bias")
    flat = torch.tanh(mixed).flatten(2)
    f = torch.baddbmm(p["linear_bias"].unsqueeze(1), flat, p["linear"].mT)
    taps.append(Tap("out", "linear", ("linear", "linear_bias"), flat.detach(), f))
    return f, taps


@pytest.fixture(scope="module")
def members() -> list[dict[str, Tensor]]:
    return [parameters(member) for member in range(K)]


@pytest.fixture(scope="module")
def x() -> Tensor:
    return normal((N, 2, 4, 4), "x")


@pytest.fixture(scope="module")
def tapped(members: list[dict[str, Tensor]], x: Tensor) -> tuple[Tensor, list[Tap]]:
    return forward_tapped(members, x)


def test_the_jacobian_is_the_one_of_autograd(
    members: list[dict[str, Tensor]], x: Tensor, tapped: tuple[Tensor, list[Tap]]
) -> None:
    f, taps = tapped
    names = [name for tap in with_parameters(taps) for name in tap.parameters]
    assert sorted(names) == sorted(SHAPES)
    ours = jacobian(f, taps)
    for k, p in enumerate(members):
        torch.testing.assert_close(f[k], forward_one(p, x))
        exact = torch.autograd.functional.jacobian(
            lambda *values: forward_one(dict(zip(names, values, strict=True)), x), tuple(p[name] for name in names)
        )
        flat = torch.cat([part.reshape(N * C, -1) for part in exact], 1)
        torch.testing.assert_close(ours[k], flat, rtol=1e-12, atol=1e-13)


def test_counts_are_those_of_the_parameters(tapped: tuple[Tensor, list[Tap]]) -> None:
    for tap in tapped[1]:
        assert tap.count == sum(torch.Size(SHAPES[name]).numel() for name in tap.parameters)


def test_a_cotangent_gives_the_gradient_of_that_combination(
    members: list[dict[str, Tensor]], x: Tensor, tapped: tuple[Tensor, list[Tap]]
) -> None:
    f, taps = tapped
    v = normal((1, K, N, C), "v")
    for tap, delta in zip(taps, pull_back(f, taps, v), strict=True):
        if tap.kind == "site":
            assert delta.shape == (K, 1, N, *tap.outputs.shape[2:])
            continue
        summed = rows(tap, delta).sum((1, 2))
        for k, p in enumerate(members):
            exact = torch.autograd.grad((forward_one(p, x) * v[0, k]).sum(), [p[name] for name in tap.parameters])
            torch.testing.assert_close(summed[k], torch.cat([g.flatten() for g in exact]), rtol=1e-12, atol=1e-13)


def test_patches_are_those_of_torch(x: Tensor) -> None:
    h = normal((K, N, 3, 6, 6), "h")
    ours = unfold("conv", h, 3, 1)
    exact = functional.unfold(h.flatten(0, 1), 3, padding=1).unflatten(0, (K, N))
    torch.testing.assert_close(ours, exact, rtol=0, atol=0)


def test_a_tap_refuses_what_does_not_fit() -> None:
    h, z = torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 3, 4, 4)
    with pytest.raises(ValueError, match="unknown kind 'pool'"):
        Tap("a", "pool", ("w",), h, z)
    with pytest.raises(ValueError, match=r"'a' of kind 'conv' cannot have parameters \(\)"):
        Tap("a", "conv", (), h, z)
    with pytest.raises(ValueError, match=r"'a' of kind 'site' cannot have parameters \('w',\)"):
        Tap("a", "site", ("w",), h, z)
    with pytest.raises(ValueError, match=r"cannot map \[1, 2, 3, 4, 4\] to \[1, 2, 3, 4, 4\]"):
        Tap("a", "conv", ("w",), h, z, kernel=3, padding=0)
    with pytest.raises(ValueError, match=r"cannot map \[1, 2, 3, 4, 4\] to \[1, 2, 1, 4, 4\]"):
        Tap("a", "scale", ("w",), h, z[:, :, :1])
    with pytest.raises(ValueError, match=r"cannot map \[1, 2, 3, 4, 4\] to \[1, 1, 3, 4, 4\]"):
        Tap("a", "linear", ("w",), h, z[:, :1])


def test_pull_back_refuses_what_is_not_in_the_graph(tapped: tuple[Tensor, list[Tap]], x: Tensor) -> None:
    f, taps = tapped
    with pytest.raises(ValueError, match=r"outputs must be \[K, N, C\], got \[5, 3\]"):
        pull_back(f[0], taps)
    with pytest.raises(ValueError, match=r"cotangents must be \[V, K, N, C\] = \[V, 2, 5, 3\], got \[1, 2, 5, 2\]"):
        pull_back(f, taps, torch.zeros(1, K, N, 2))
    dead = Tap("dead", "site", (), torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match="tap 'dead' is not part of an autograd graph"):
        pull_back(f, [dead])
    alien = Tap("alien", "site", (), torch.zeros(1, 1, 2), torch.zeros(1, 1, 2, requires_grad=True))
    with pytest.raises(ValueError, match="do not depend on tap 'alien'"):
        pull_back(f, [alien])


def test_rows_refuse_sites_and_other_shapes(tapped: tuple[Tensor, list[Tap]]) -> None:
    f, taps = tapped
    site = next(tap for tap in taps if tap.kind == "site")
    with pytest.raises(ValueError, match="a site has no parameters"):
        patches(site)
    with pytest.raises(ValueError, match=r"is not \[K, V, N, \.\.\.\] at tap 'first'"):
        rows(taps[0], torch.zeros(K, C, N, 2))
    with pytest.raises(ValueError, match="no tap has parameters"):
        jacobian(f, [site])
    with pytest.raises(ValueError, match="act at more than one tap: beta, gamma"):
        with_parameters([taps[1], taps[1]])
