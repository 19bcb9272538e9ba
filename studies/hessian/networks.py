"""Data and networks of the study: what is drawn from a seed, and how a network is trained up to where it is measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from assay import AssayError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from theory.curvature import Curvature
    from theory.ensemble import Batches, FullBatch, StackedMLP

STD = 0.1
"""Initial standard deviation of every weight and bias, at every width: the papers' choice."""
CLASSES = 10
INPUTS = {"digits": 64, "mnist": 784, "cifar10": 3072}
GROUP_BYTES = 2**28
"""Members are measured in groups whose second derivatives take about this much memory."""


def layers(data: str, width: int, depth: int) -> tuple[int, ...]:
    """Layer sizes of a network with hidden layers of one width."""
    return (INPUTS[data], *[width] * depth, CLASSES)


@cache
def pixels(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as vectors (N, d) of pixels between 0 and 1, less the mean pixel, and labels (N,).

    The mean image is left in, as the papers do: it is what makes λ_1 stand out from λ_2. MNIST and CIFAR-10 are read
    from the folders that ASSAY_MNIST and ASSAY_CIFAR10 name.
    """
    from theory.datasets import cifar10, digit_images, mnist

    if name == "digits":
        held, white = digit_images(), 16
    else:
        variable = f"ASSAY_{name.upper()}"
        folder = os.environ.get(variable)
        if not folder:
            raise AssayError(f"data {name!r} is read from disk: set {variable} to its folder")
        held, white = (mnist if name == "mnist" else cifar10)(folder), 255
    x = held.images.reshape(len(held.images), -1) / white
    return x - x.mean(), held.labels


def draw(name: str, examples: int, seeds: Sequence[int], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Training inputs [K, N, d] and one-hot targets [K, N, 10] of each seed, in double precision."""
    import numpy as np
    import torch

    x, labels = pixels(name)
    rows = np.stack([np.random.default_rng([seed, examples]).permutation(len(x))[:examples] for seed in seeds])
    y = np.eye(CLASSES)[labels[rows]]
    return torch.from_numpy(x[rows]).to(device), torch.from_numpy(y).to(device)


def trained(
    sizes: Sequence[int],
    activation: str,
    seeds: Sequence[int],
    loss: str,
    rate: float,
    batches: Batches | FullBatch,
    record: Sequence[int],
    stream: str = "init",
) -> list[StackedMLP]:
    """The stack as it is after each step of `record`, trained in single precision, returned in double."""
    import torch

    from theory.ensemble import gaussian_mlp, snapshots

    mlp = gaussian_mlp(
        sizes, activation, seeds, STD, stream=stream, rates=rate, dtype=torch.float32, device=batches.x.device
    )
    return [state.copy(torch.float64) for state in snapshots(mlp, batches, loss, record)]


def each_group(
    mlp: StackedMLP, x: torch.Tensor, y: torch.Tensor, loss: str, measure: Callable[[Curvature, slice], dict]
) -> dict[str, list]:
    """Measure a few members at a time, in double precision, and join what `measure` returns per member."""
    from theory.curvature import MLPCurvature
    from theory.ensemble import chunks

    units = sum(mlp.sizes[1:])
    size = max(1, GROUP_BYTES // (8 * x.shape[-2] * units * (units + 8)))
    joined: dict[str, list] = {}
    for rows in chunks(mlp.members, size):
        part = MLPCurvature(mlp.narrow(rows.start, rows.stop - rows.start), x[rows], y[rows], loss)
        for name, values in measure(part, rows).items():
            joined.setdefault(name, []).extend(values)
    return joined


def snapshot(curvature: Curvature, y: torch.Tensor) -> dict[str, list[float]]:
    """Loss, accuracy and gradient norm on the training set, per member."""
    f = curvature.f()
    return {
        "train_loss": curvature.loss().tolist(),
        "train_accuracy": (f.argmax(-1) == y.argmax(-1)).double().mean(-1).tolist(),
        "grad_norm": curvature.gradient().norm(dim=-1).tolist(),
    }
