"""Trials on digits and on random matrices, and the list of all trials: their factors, and what measures a pack."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from assay import Factor, Pack, Table, Trial, scaled, seeds
from studies.hessian.clusters import clusters, resamples, separability
from studies.hessian.networks import (
    CLASSES,
    COUNTS,
    INPUTS,
    SHAPES,
    TRAINING,
    count_outliers,
    draw,
    each_group,
    layers,
    member_bytes,
    over_time,
    parameters,
    snapshot,
    trained,
    upper_end,
)  # fmt: skip

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from theory.curvature import Curvature
    from theory.ensemble import StackedMLP

TOP = 60
"""Eigenvalues recorded at the upper end of a spectrum."""

# --- Width, depth, loss and training time -----------------------------------------------------------------------------

WIDTH_STEPS = (250, 500, 1000, 2000, 4000)
FINAL = 2000
"""Step at which networks are compared."""
WIDTH_RATE = 0.2
LONG = 240
"""Eigenvalues recorded then at most, as many as it takes to reach λ_1/100."""


def _one_change(cell: Mapping[str, Any]) -> bool:
    """One hidden layer of relu units under cross entropy, or that with one thing changed."""
    changes = (cell["loss_function"] != "xent") + (cell["depth"] != 1) + (cell["activation"] != "relu")
    return changes == 0 or (changes == 1 and 20 <= cell["width"] <= 80)


def measure_widths(pack: Pack) -> dict[str, pd.DataFrame]:
    """Train by gradient descent on the same data at one width, and record the upper end of the spectrum on the way."""
    from theory.curvature import outliers
    from theory.ensemble import FullBatch

    x, y = draw(pack["data"], pack["examples"], pack.column("seed"), pack.device)
    loss, sizes = pack["loss_function"], layers(pack["data"], pack["width"], pack["depth"])
    batches = FullBatch(x.float(), y.float(), max(WIDTH_STEPS), len(pack))
    states = trained(sizes, pack["activation"], pack.column("seed"), loss, WIDTH_RATE, batches, WIDTH_STEPS)
    window = outliers.search_window(CLASSES, parameters(sizes))

    def measure(curvature: Curvature, rows: slice) -> dict[str, list]:
        return snapshot(curvature, y[rows]) | upper_end(curvature, TOP)

    def count(curvature: Curvature, rows: slice) -> dict[str, list]:
        number = TOP
        while True:
            found = count_outliers(curvature, y[rows].argmax(-1), loss, CLASSES, window, number)
            if number == LONG or loss != "xent" or all(top[-1] < 0.01 * top[0] for top in found["top"]):
                return found
            number *= 2

    frame = over_time(pack, WIDTH_STEPS, [each_group(state, x, y, loss, measure) for state in states])
    # One at a time: how far one network has to be searched must not lengthen what is recorded of another.
    ends = pack.frame(**each_group(states[WIDTH_STEPS.index(FINAL)], x, y, loss, count, group=1))
    return {
        "widths": frame.assign(eta_t=WIDTH_RATE * frame["t"], parameters=parameters(sizes)),
        "ends": ends.assign(parameters=parameters(sizes)),
    }


widths = Trial(
    "widths",
    (
        Factor("data", scaled(("digits",), ("digits",), ("mnist", "cifar10"))),
        Factor("examples", scaled((100,), (200,), (1000,))),
        Factor("loss_function", ("xent", "mse")),
        Factor("depth", scaled((1,), (1, 2), (1, 2))),
        Factor("activation", ("relu", "tanh")),
        Factor("width", scaled((20, 40), (10, 20, 40, 80, 160), (10, 20, 30, 50, 70))),
        seeds(3, 10, 10),
    ),
    (
        Table(
            "widths",
            {"t": int, "eta_t": float, "parameters": int, **TRAINING, "top": list[float], "residual": float},
        ),
        Table("ends", {"parameters": int, "top": list[float], "residual": float, **COUNTS}),
    ),
    measure_widths,
    where=_one_change,
    cost=lambda cell: (
        (0.8 + 0.055 * cell["width"]) * cell["depth"] * INPUTS[cell["data"]] / 64 * cell["examples"] / 200
    ),
    memory=lambda cell: 3.0 * member_bytes(layers(cell["data"], cell["width"], cell["depth"]), cell["examples"]),
    gpus={"cluster": 0.5},
)


# --- Exact spectra of H, G and R --------------------------------------------------------------------------------------

EXACT_STEPS = (0, 300, 1000, 3000)
LOWEST = 20
NEGATIVE, CLEARLY_NEGATIVE, ZERO = 1e-6, 1e-3, 1e-8
"""Shares of λ_1 beyond which an eigenvalue counts as negative or clearly so, and below which it counts as zero."""
RANKS = 101
"""Eigenvalues kept of a whole spectrum, at evenly spaced ranks."""


def measure_exact(pack: Pack) -> pd.DataFrame:
    """Whole spectra of H, of its Gauss-Newton part G and of the rest R, at the start and over training."""
    import torch

    from theory.curvature import MLPCurvature, outliers
    from theory.ensemble import FullBatch

    x, y = draw(pack["data"], pack["examples"], pack.column("seed"), pack.device)
    batches = FullBatch(x.float(), y.float(), max(EXACT_STEPS), len(pack))
    sizes = layers(pack["data"], pack["width"], 1)
    states = trained(sizes, pack["activation"], pack.column("seed"), "xent", WIDTH_RATE, batches, EXACT_STEPS)
    readout = sizes[-1] * (sizes[-2] + 1)

    def measure(curvature: Curvature, rows: slice, state: StackedMLP) -> dict[str, list]:
        H, G, R = (curvature.matrix(part) for part in ("hessian", "ggn", "residual"))
        h, g, r = (torch.linalg.eigvalsh(part).flip(-1) for part in (H, G, R))
        fisher = torch.linalg.eigvalsh(curvature.gram("fisher")).flip(-1)[:, :CLASSES]
        # G with diag(p) for A: its dual is that of the squared loss, J Jᵀ/N, between factors √p
        root = curvature.f().softmax(-1).sqrt().flatten(1).unsqueeze(2)
        plain = MLPCurvature(state.narrow(rows.start, curvature.members), x[rows], y[rows], "mse").gram()
        diagonal = torch.linalg.eigvalsh(root * plain * root.mT).flip(-1)[:, :CLASSES]
        first, leading = h[:, 0], slice(0, CLASSES)

        M, spectra = h.shape[1], h.cpu().numpy()
        return snapshot(curvature, y[rows]) | {
            "spread_h": h[:, torch.linspace(0, M - 1, RANKS).round().long()].tolist(),
            "top_h": h[:, :TOP].tolist(),
            "top_g": g[:, :TOP].tolist(),
            "top_fisher": fisher.tolist(),
            "bottom_h": h[:, -LOWEST:].tolist(),
            "ggn_error": ((h - g).abs() / g)[:, leading].amax(-1).tolist(),
            "diagonal_error": ((h[:, leading] - diagonal).abs() / diagonal).amax(-1).tolist(),
            "fisher_error": ((h[:, leading] - fisher).abs() / fisher).amax(-1).tolist(),
            "largest_shift": ((h - g).abs().amax(-1) / first).tolist(),
            "norm_r": (r.abs().amax(-1) / first).tolist(),
            "norm_r_readout": (torch.linalg.matrix_norm(R[:, -readout:, -readout:], 2) / first).tolist(),
            "lowest_h": (h[:, -1] / first).tolist(),
            "lowest_g": (g[:, -1] / first).tolist(),
            "lowest_r": (r[:, -1] / first).tolist(),
            "negative": outliers.negative_fraction(spectra, M, NEGATIVE).tolist(),
            "clearly_negative": outliers.negative_fraction(spectra, M, CLEARLY_NEGATIVE).tolist(),
            "zero": outliers.zero_fraction(spectra, M, ZERO).tolist(),
        }

    found = [each_group(state, x, y, "xent", partial(measure, state=state)) for state in states]
    frame = over_time(pack, EXACT_STEPS, found)
    return frame.assign(eta_t=WIDTH_RATE * frame["t"], parameters=parameters(sizes))


EXACT_NUMBERS = (
    "ggn_error", "fisher_error", "diagonal_error", "largest_shift", "norm_r", "norm_r_readout", "lowest_h", "lowest_g", "lowest_r",
    "negative", "clearly_negative", "zero",
)  # fmt: skip

exact = Trial(
    "exact",
    (
        Factor("data", scaled(("digits",), ("digits",), ("mnist",))),
        Factor("examples", scaled((60,), (150,), (500,))),
        Factor("activation", ("relu", "tanh")),
        Factor("width", scaled((4, 8), (6, 12, 24), (5, 10, 20))),
        seeds(3, 10, 10),
    ),
    (
        Table(
            "exact",
            {"t": int, "eta_t": float, "parameters": int, **TRAINING}
            | dict.fromkeys(("spread_h", "top_h", "top_g", "top_fisher", "bottom_h"), list[float])
            | dict.fromkeys(EXACT_NUMBERS, float),
        ),
    ),
    measure_exact,
    cost=lambda cell: 0.3 + 7.5 * (parameters(layers(cell["data"], cell["width"], 1)) / 1810) ** 2,
    memory=lambda cell: 8.0 * 8 * parameters(layers(cell["data"], cell["width"], 1)) ** 2,
    gpus={"cluster": 0.5},
)


# --- The density of the whole spectrum --------------------------------------------------------------------------------

PROBES, LANCZOS_STEPS = 20, 80


def measure_density(pack: Pack) -> pd.DataFrame:
    """The whole spectrum of a trained network, and the Ritz values and weights of stochastic Lanczos quadrature."""
    import torch

    from theory.curvature import slq
    from theory.ensemble import FullBatch

    x, y = draw(pack["data"], pack["examples"], pack.column("seed"), pack.device)
    steps = max(EXACT_STEPS)
    batches = FullBatch(x.float(), y.float(), steps, len(pack))
    sizes = layers(pack["data"], pack["width"], 1)
    (state,) = trained(sizes, "relu", pack.column("seed"), "xent", WIDTH_RATE, batches, (steps,))

    def measure(curvature: Curvature, rows: slice) -> dict[str, list]:
        found = slq(
            curvature.product,
            curvature.members,
            curvature.parameters,
            PROBES,
            LANCZOS_STEPS,
            0,
            device=curvature.device,
        )
        return {
            "eigenvalues": torch.linalg.eigvalsh(curvature.matrix()).flip(-1).tolist(),
            "nodes": found.nodes.flatten(1).tolist(),
            "weights": found.weights.flatten(1).tolist(),
        }

    return pack.frame(**each_group(state, x, y, "xent", measure))


density = Trial(
    "density",
    (
        Factor("data", scaled(("digits",), ("digits",), ("mnist",))),
        Factor("examples", scaled((60,), (150,), (500,))),
        Factor("width", scaled((8,), (24,), (10,))),
        seeds(1, 1, 1),
    ),
    (Table("density", {"eigenvalues": list[float], "nodes": list[float], "weights": list[float]}),),
    measure_density,
    cost=lambda cell: 1.0 + 3.0 * (parameters(layers(cell["data"], cell["width"], 1)) / 1810) ** 2,
    memory=lambda cell: 8.0 * 8 * parameters(layers(cell["data"], cell["width"], 1)) ** 2,
    gpus={"cluster": 0.5},
)


# --- Large and small batches ------------------------------------------------------------------------------------------

LARGE, SMALL = 256, 10
BATCH_RATE, BATCH_STEPS = 0.1, 2000
LATE = (1800, 1850, 1900, 1950, 2000)
"""Steps whose spectra are averaged: small batches make λ_1 fluctuate about as much as the effect."""
EARLY = 400
POINTS = 81
PATHS = ("continued", "same start", "other start", "permuted")


def measure_batches(pack: Pack) -> dict[str, pd.DataFrame]:
    """Train with large and with small batches from one start, go on from the large-batch end, and draw lines."""
    import pandas as pd
    import torch

    from theory.curvature import MLPCurvature, lines, outliers
    from theory.ensemble import Batches, snapshots

    seed = pack.column("seed")
    x, y = draw(pack["data"], pack["examples"], seed, pack.device)
    sizes = layers(pack["data"], pack["width"], 1)
    window = outliers.search_window(CLASSES, parameters(sizes))

    def batches(size: int, order: int = 0) -> Batches:
        return Batches(x.float(), y.float(), min(size, pack["examples"]), BATCH_STEPS, [2 * s + order for s in seed])

    def run(size: int, stream: str = "init") -> list:
        steps = (EARLY, *LATE)
        return trained(sizes, "relu", seed, "xent", BATCH_RATE, batches(size), steps, stream)

    def measure(curvature: Curvature, rows: slice) -> dict[str, list]:
        found = upper_end(curvature, window + 1)
        return snapshot(curvature, y[rows]) | found | {"ratio": [outliers.ratio(top, window) for top in found["top"]]}

    large, small, other = run(LARGE), run(SMALL), run(LARGE, "other init")
    spectra = [
        over_time(pack, (EARLY, *LATE), [each_group(state, x, y, "xent", measure) for state in states]).assign(arm=arm)
        for arm, states in (("large", large), ("small", small))
    ]
    continued = large[-1].copy(torch.float32)
    snapshots(continued, batches(SMALL, order=1), "xent", ())
    ends = {"continued": continued.copy(torch.float64), "same start": small[-1], "other start": other[-1]}
    ends["permuted"] = permuted(ends["continued"])

    start = MLPCurvature(large[-1], x, y, "xent")
    alphas = lines.line(POINTS)
    drawn = []
    for path in PATHS:
        theta = MLPCurvature(ends[path], x, y, "xent").theta
        loss = lines.loss_along(start, start.theta, theta, alphas)
        distance = (theta - start.theta).norm(dim=-1, keepdim=True).expand_as(loss)
        drawn.append(pack.frame({"alpha": list(map(float, alphas))}, loss=loss, distance=distance).assign(path=path))
    return {"batches": pd.concat(spectra), "lines": pd.concat(drawn)}


def permuted(mlp: Any) -> Any:
    """The same functions with the hidden units in reverse order: another point of weight space, equally good."""
    flipped = mlp.copy()
    for tensor, axis in ((flipped.weights[0], 1), (flipped.biases[0], 1), (flipped.weights[1], 2)):
        tensor.copy_(tensor.flip(axis))
    return flipped


batches = Trial(
    "batches",
    (
        Factor("data", scaled(("digits",), ("digits",), ("mnist",))),
        Factor("examples", scaled((256,), (512,), (1000,))),
        Factor("width", scaled((20,), (20,), (30,))),
        seeds(3, 16, 20),
    ),
    (
        Table("batches", {"arm": str, "t": int, **TRAINING, "top": list[float], "residual": float, "ratio": int}),
        Table("lines", {"path": str, "alpha": float, "loss": float, "distance": float}),
    ),
    measure_batches,
    cost=lambda cell: 3.5 * cell["examples"] / 512,
    memory=lambda cell: 8.0 * cell["examples"] * 2000,
    gpus={"cluster": 0.5},
)


# --- Convolutional networks -------------------------------------------------------------------------------------------

CONV_STEPS = 600
CONV_LATE = (500, 550, 600)


def conv_net(data: str, seed: int) -> torch.nn.Module:
    """Two convolutions with relu and max-pooling and two fully connected layers, as in Sagun et al. 2017, Sec. 3.3."""
    import torch
    from torch import nn

    from theory.ensemble import normal

    channels, side, _ = SHAPES[data]
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * (side // 4) ** 2, 32), nn.ReLU(), nn.Linear(32, CLASSES),
    )  # fmt: skip
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            fan_in = math.prod(p.shape[1:])
            p.copy_(
                normal(p.shape, "conv init", seed, index) * math.sqrt(2 / fan_in) if p.dim() > 1 else torch.zeros(())
            )
    return net


def measure_convolutions(pack: Pack) -> pd.DataFrame:
    """Train convolutional networks with large or small batches, and record the upper end of the spectrum at the end."""
    from torch.nn.functional import cross_entropy

    from theory.curvature import ModuleCurvature
    from theory.ensemble import Batches, Ensemble

    seed, shape = pack.column("seed"), SHAPES[pack["data"]]
    x, y = draw(pack["data"], pack["examples"], seed, pack.device)
    batches = Batches(x.float(), y.float(), pack["batch"], CONV_STEPS, seed)
    models = [conv_net(pack["data"], one).to(pack.device) for one in seed]
    ensemble = Ensemble(models, BATCH_RATE)
    found = []
    for step in range(CONV_STEPS):
        inputs, targets = batches[step]
        ensemble.step(
            cross_entropy, inputs.expand(len(pack), -1, -1).unflatten(-1, shape), targets.expand(len(pack), -1, -1)
        )
        if step + 1 in CONV_LATE:
            for index, model in enumerate(models):
                model.load_state_dict({name: p[index] for name, p in ensemble.parameters.items()})
            doubled = [model.double() for model in copy.deepcopy(models)]
            curvature = ModuleCurvature(doubled, x.unflatten(-1, shape), y, "xent")
            found.append(snapshot(curvature, y) | upper_end(curvature, 2 * CLASSES))
    return over_time(pack, CONV_LATE, found)


convolutions = Trial(
    "convolutions",
    (
        Factor("data", scaled(("digits",), ("digits",), ("mnist", "cifar10"))),
        Factor("examples", scaled((64,), (256,), (1000,))),
        Factor("batch", scaled((SMALL, 64), (SMALL, 128), (SMALL, 512))),
        seeds(2, 8, 10),
    ),
    (Table("convolutions", {"t": int, **TRAINING, "top": list[float], "residual": float}),),
    measure_convolutions,
    cost=lambda cell: 9.0 * INPUTS[cell["data"]] / 64 * cell["examples"] / 256,
    memory=lambda cell: 8.0 * 200 * cell["examples"] * INPUTS[cell["data"]],
    gpus={"cluster": 0.5},
)


# --- Random matrices --------------------------------------------------------------------------------------------------

SPIKES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def measure_spikes(pack: Pack) -> pd.DataFrame:
    """Largest eigenvalue of a sample covariance matrix whose population has one spike, and how flat the rest is."""
    import numpy as np

    from theory.curvature import spiked_spectrum

    M, N = pack["dimensions"], pack["examples"]
    cells = zip(pack.column("spike"), pack.column("seed"), strict=True)
    spectra = np.stack([spiked_spectrum(M, N, spike, seed) for spike, seed in cells])  # [cells, M]
    return pack.frame(largest=spectra[:, 0], above_hundredth=(spectra > 1e-2 * spectra[:, :1]).mean(1))


spikes = Trial(
    "spikes",
    (
        Factor("dimensions", scaled((400, 300), (800, 300), (3200, 1200))),
        Factor("examples", scaled((200, 600), (400, 600), (1600, 2400))),
        Factor("spike", SPIKES, packed=True),
        seeds(10, 600, 200),
    ),
    (Table("spikes", {"largest": float, "above_hundredth": float}),),
    measure_spikes,
    where=lambda cell: cell["dimensions"] / cell["examples"] in (0.5, 2.0),
    cost=lambda cell: 0.03 * (min(cell["dimensions"], cell["examples"]) / 400) ** 2.5,
    memory=lambda cell: 8.0 * cell["dimensions"],
)

TRIALS = (widths, clusters, resamples, exact, density, separability, batches, convolutions, spikes)
