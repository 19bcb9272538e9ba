"""What the study measures: the factors of each trial, and the functions that measure a pack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from assay import Factor, Pack, Table, Trial
from studies.hessian.networks import CLASSES, INPUTS, draw, each_group, layers, snapshot, trained

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from theory.curvature import Curvature
    from theory.ensemble import StackedMLP

TOP = 60
"""Eigenvalues recorded at the upper end of a spectrum."""
TRAINING = {"train_loss": float, "train_accuracy": float, "grad_norm": float}
COUNTS = {"gap": int, "ratio": int, "elbow": int, "class_edge": int, "k_gap": float}


def seeds(smoke: int, laptop: int, cluster: int) -> Factor:
    """A seed is the sampling unit: it fixes the data, their order and, for each shape, the initial weights."""
    counts = {"smoke": smoke, "laptop": laptop, "cluster": cluster}
    return Factor("seed", {scale: tuple(range(count)) for scale, count in counts.items()}, packed=True)


def scaled(smoke: tuple, laptop: tuple, cluster: tuple) -> dict[str, tuple]:
    """Values of a factor at the three scales."""
    return {"smoke": smoke, "laptop": laptop, "cluster": cluster}


def upper_end(curvature: Curvature, count: int) -> dict[str, list]:
    """The largest eigenvalues of H per member, and the largest residual ‖Hv − λv‖/λ_1 of their pairs."""
    from theory.curvature import eigenpairs

    count = min(count, curvature.parameters)
    pairs = eigenpairs(curvature.product, curvature.members, curvature.parameters, count, device=curvature.device)
    residual = pairs.residuals.amax(-1) / pairs.values[:, 0].abs()
    return {"top": pairs.values.tolist(), "residual": residual.tolist()}


# --- Gaussian clusters ------------------------------------------------------------------------------------------------

BLOB_INPUTS, BLOB_WIDTH, BLOB_STEPS, BLOB_RATE = 100, 30, 2000, 0.1
CLUSTERS = scaled((2, 5), (2, 5, 10, 20), (2, 5, 10, 20, 50))
BLOB_STD = {"random": 1.0, "orthogonal": 0.3}


def _relu_or_plain(cell: Mapping[str, Any]) -> bool:
    """The papers' relu networks on true classes; tanh, and labels at random, on random centres only."""
    usual = cell["activation"] == "relu", cell["labels"] == "classes"
    return all(usual) or (cell["centres"] == "random" and any(usual))


def blob_sizes(k: int) -> tuple[int, ...]:
    """Layer sizes of the papers' network on k clusters: 3960 + 31 k parameters."""
    return (BLOB_INPUTS, BLOB_WIDTH, BLOB_WIDTH, k)


def count_outliers(curvature: Curvature, labels: torch.Tensor, k: int, window: int) -> dict[str, list]:
    """The upper end of H, the edge λ_1(H − G_class), and what every detector counts, per member."""
    import numpy as np

    from theory.curvature import class_factors, eigenpairs, outliers, row_weights, without_class

    found = upper_end(curvature, window + 1)
    tops = np.array(found["top"])
    factors = class_factors(curvature.rows(), row_weights(curvature.f(), "xent"), labels)
    rest = without_class(curvature.product, factors)
    edge = eigenpairs(rest, curvature.members, curvature.parameters, 1, device=curvature.device).values[:, 0].tolist()
    return found | {
        "edge": edge,
        "gap": outliers.gap(tops, window).tolist(),
        "ratio": outliers.ratio(tops, window).tolist(),
        "elbow": outliers.elbow(tops, window).tolist(),
        "class_edge": outliers.class_edge(tops, edge, tolerance=1e-6).tolist(),  # both ends come from Lanczos
        "k_gap": outliers.k_gap(tops, k).tolist(),
    }


def on_clusters(pack: Pack, steps: Sequence[int]) -> tuple[list[StackedMLP], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Networks trained on k clusters, at each of the given steps; their inputs, one-hot targets and labels."""
    import torch

    from theory.datasets import blobs
    from theory.ensemble import FullBatch, stream

    k, N = pack["clusters"], pack["examples"]
    cells = zip(pack.column("centres"), pack.column("labels"), pack.column("seed"), strict=True)
    inputs, labels = [], []
    for centres, kind, seed in cells:
        held = blobs(k, BLOB_INPUTS, N, BLOB_STD[centres], seed, centres)
        order = torch.randperm(N, generator=stream("labels", seed)) if kind == "random" else torch.arange(N)
        inputs.append(torch.from_numpy(held.x))
        labels.append(torch.from_numpy(held.labels)[order])
    x, label = torch.stack(inputs).to(pack.device), torch.stack(labels).to(pack.device)
    y = torch.nn.functional.one_hot(label, k).double()
    batches = FullBatch(x.float(), y.float(), BLOB_STEPS, len(pack))
    states = trained(blob_sizes(k), pack["activation"], pack.column("seed"), "xent", BLOB_RATE, batches, steps)
    return states, x, y, label


def window(pack: Pack) -> int:
    """How many eigenvalues detectors look at: one number for every k, since one that grew with k would tell the answer."""
    from theory.curvature import outliers

    return outliers.search_window(max(CLUSTERS[pack.scale]), parameters(blob_sizes(min(CLUSTERS[pack.scale]))))


def measure_clusters(pack: Pack) -> pd.DataFrame:
    """Train on k clusters and count outliers with every detector, before and after."""
    steps = (0, BLOB_STEPS)
    states, x, y, label = on_clusters(pack, steps)

    def measure(curvature: Curvature, rows: slice) -> dict[str, list]:
        return snapshot(curvature, y[rows]) | count_outliers(curvature, label[rows], pack["clusters"], window(pack))

    return over_time(pack, steps, [each_group(state, x, y, "xent", measure) for state in states])


DRAWS = 100


def measure_resamples(pack: Pack) -> pd.DataFrame:
    """Count the outliers of G again with the examples drawn with replacement: how sure one network is of its count."""
    import numpy as np

    from theory.curvature import MLPCurvature, outliers, row_weights

    (state,), x, y, label = on_clusters(pack, (BLOB_STEPS,))
    found: dict[str, list[list[float]]] = {"ratio": [], "class_edge": [], "k_gap": []}
    for member, seed in enumerate(pack.column("seed")):
        one = slice(member, member + 1)
        curvature = MLPCurvature(state.narrow(member, 1), x[one], y[one], "xent")
        p = row_weights(curvature.f(), "xent")[0]
        drawn = outliers.bootstrap_counts(
            curvature.gram()[0].cpu(), p.cpu(), label[member].cpu(), draws=DRAWS, seed=seed, window=window(pack)
        )
        for name in ("ratio", "class_edge"):
            found[name].append(drawn.counts[name].astype(float).tolist())
        found["k_gap"].append(np.asarray(drawn.k_gap).tolist())
    return pack.frame(**found)


def over_time(pack: Pack, steps: Sequence[int], found: Sequence[Mapping[str, list]]) -> pd.DataFrame:
    """One row per cell and snapshot, from one list over cells per column and snapshot."""
    import pandas as pd

    return pd.concat([pack.frame(**columns).assign(t=step) for step, columns in zip(steps, found, strict=True)])


def parameters(sizes: Sequence[int]) -> int:
    """M of a network with biases."""
    return sum((below + 1) * above for below, above in pairwise(sizes))


clusters = Trial(
    "clusters",
    (
        Factor("activation", ("relu", "tanh")),
        Factor("examples", scaled((100,), (400,), (1000, 5000))),
        Factor("clusters", CLUSTERS),
        Factor("centres", ("random", "orthogonal"), packed=True),
        Factor("labels", ("classes", "random"), packed=True),
        seeds(3, 10, 10),
    ),
    (Table("clusters", {"t": int, **TRAINING, "top": list[float], "residual": float, "edge": float, **COUNTS}),),
    measure_clusters,
    where=_relu_or_plain,
    cost=lambda cell: (1.7 + 0.15 * cell["clusters"]) * cell["examples"] / 400,
    memory=lambda cell: 8.0 * cell["examples"] * (BLOB_INPUTS + 5000),
    gpus={"cluster": 0.5},
)


resamples = Trial(
    "resamples",
    (
        Factor("activation", ("relu",)),
        Factor("examples", scaled((100,), (400,), (1000,))),
        Factor("clusters", scaled((2,), (2, 5, 10), (2, 5, 10, 20))),
        Factor("centres", ("random",), packed=True),
        Factor("labels", ("classes",), packed=True),
        seeds(2, 4, 5),
    ),
    (Table("resamples", {"ratio": list[float], "class_edge": list[float], "k_gap": list[float]}),),
    measure_resamples,
    cost=lambda cell: (0.8 + 0.9 * cell["clusters"]) * (cell["examples"] / 400) ** 2,
    memory=lambda cell: 16.0 * (cell["examples"] * cell["clusters"]) ** 2,
)


# --- Width, depth, loss and training time -----------------------------------------------------------------------------

WIDTH_STEPS = (250, 500, 1000, 2000, 4000)
WIDTH_RATE = 0.2
ABOVE = {"above_tenth": 1e-1, "above_hundredth": 1e-2}


def _one_change(cell: Mapping[str, Any]) -> bool:
    """One hidden layer of relu units under cross entropy, or that with one thing changed."""
    changes = (cell["loss_function"] != "xent") + (cell["depth"] != 1) + (cell["activation"] != "relu")
    return changes == 0 or (changes == 1 and 20 <= cell["width"] <= 80)


def count_above(top: Sequence[float], tau: float) -> float:
    """#{λ_j > τ λ_1}; NaN if the recorded eigenvalues do not reach down to it."""
    found = sum(value > tau * top[0] for value in top)
    return math.nan if found == len(top) else float(found)


def measure_widths(pack: Pack) -> pd.DataFrame:
    """Train by gradient descent on the same data at one width, and record the upper end of the spectrum on the way."""
    from theory.curvature import outliers
    from theory.ensemble import FullBatch

    x, y = draw(pack["data"], pack["examples"], pack.column("seed"), pack.device)
    loss, sizes = pack["loss_function"], layers(pack["data"], pack["width"], pack["depth"])
    batches = FullBatch(x.float(), y.float(), max(WIDTH_STEPS), len(pack))
    states = trained(sizes, pack["activation"], pack.column("seed"), loss, WIDTH_RATE, batches, WIDTH_STEPS)
    window = outliers.search_window(CLASSES, parameters(sizes))

    def measure(curvature: Curvature, rows: slice) -> dict[str, list]:
        found = upper_end(curvature, TOP)
        counts = {name: [count_above(top, tau) for top in found["top"]] for name, tau in ABOVE.items()}
        ratio = [outliers.ratio(top, window) for top in found["top"]]
        return snapshot(curvature, y[rows]) | found | counts | {"ratio": ratio}

    frame = over_time(pack, WIDTH_STEPS, [each_group(state, x, y, loss, measure) for state in states])
    return frame.assign(eta_t=WIDTH_RATE * frame["t"], parameters=parameters(sizes))


widths = Trial(
    "widths",
    (
        Factor("data", scaled(("digits",), ("digits",), ("mnist",))),
        Factor("examples", scaled((100,), (200,), (1000,))),
        Factor("loss_function", ("xent", "mse")),
        Factor("depth", (1, 2)),
        Factor("activation", ("relu", "tanh")),
        Factor("width", scaled((20, 40), (10, 20, 40, 80, 160), (10, 20, 30, 50, 70))),
        seeds(3, 8, 10),
    ),
    (
        Table(
            "widths",
            {"t": int, "eta_t": float, "parameters": int, **TRAINING, "top": list[float], "residual": float}
            | dict.fromkeys(ABOVE, float)
            | {"ratio": int},
        ),
    ),
    measure_widths,
    where=_one_change,
    cost=lambda cell: (0.4 + 0.065 * cell["width"]) * cell["depth"] * cell["examples"] / 200,
    memory=lambda cell: 8.0 * cell["examples"] * (INPUTS[cell["data"]] + 300 * cell["width"]),
    gpus={"cluster": 0.5},
)


# --- Exact spectra of H, G and R --------------------------------------------------------------------------------------

EXACT_STEPS = (0, 300, 1000, 3000)
LOWEST = 20
NEGATIVE, CLEARLY_NEGATIVE = 1e-6, 1e-3
"""Below minus this share of λ_1 an eigenvalue counts as negative, or as clearly so."""


def measure_exact(pack: Pack) -> pd.DataFrame:
    """Whole spectra of H, of its Gauss-Newton part G and of the rest R, at the start and over training."""
    import torch

    from theory.curvature import MLPCurvature
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

        def share(where: torch.Tensor) -> list[float]:
            return where.double().mean(-1).tolist()

        return snapshot(curvature, y[rows]) | {
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
            "negative": share(h < -NEGATIVE * h[:, :1]),
            "clearly_negative": share(h < -CLEARLY_NEGATIVE * h[:, :1]),
            "zero": share(h.abs() < NEGATIVE * h[:, :1]),
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
        seeds(3, 8, 10),
    ),
    (
        Table(
            "exact",
            {"t": int, "eta_t": float, "parameters": int, **TRAINING}
            | dict.fromkeys(("top_h", "top_g", "top_fisher", "bottom_h"), list[float])
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


# --- Separability -----------------------------------------------------------------------------------------------------

PAIR_RATE, PAIR_STEPS, PAIR_EXAMPLES, PAIR_WINDOW = 0.2, 3000, 100, 10


def measure_separability(pack: Pack) -> pd.DataFrame:
    """Two Gaussian blobs in the plane, more or less far apart, and the outliers of small networks on them."""
    import torch

    from theory.datasets import two_blobs
    from theory.ensemble import FullBatch

    cells = zip(pack.column("std"), pack.column("seed"), strict=True)
    held = [two_blobs(PAIR_EXAMPLES, std, seed) for std, seed in cells]
    x = torch.stack([torch.from_numpy(one.x) for one in held]).to(pack.device)
    label = torch.stack([torch.from_numpy(one.labels) for one in held]).to(pack.device)
    y = torch.nn.functional.one_hot(label, 2).double()
    batches = FullBatch(x.float(), y.float(), PAIR_STEPS, len(pack))
    sizes = (2, pack["width"], pack["width"], 2)
    (state,) = trained(sizes, "relu", pack.column("seed"), "xent", PAIR_RATE, batches, (PAIR_STEPS,))

    def measure(curvature: Curvature, rows: slice) -> dict[str, list]:
        return snapshot(curvature, y[rows]) | count_outliers(curvature, label[rows], 2, PAIR_WINDOW)

    return pack.frame(**each_group(state, x, y, "xent", measure))


separability = Trial(
    "separability",
    (
        Factor("width", scaled((4,), (4, 6, 10), (2, 6, 10, 14, 18))),
        Factor("std", (0.25, 0.5, 1.0), packed=True),
        seeds(6, 16, 100),
    ),
    (Table("separability", {**TRAINING, "top": list[float], "residual": float, "edge": float, **COUNTS}),),
    measure_separability,
    cost=lambda cell: 0.3,
    memory=lambda cell: 8.0 * PAIR_EXAMPLES * 5000,
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


# --- Random matrices --------------------------------------------------------------------------------------------------

SPIKES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)


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
        Factor("dimensions", scaled((400, 300), (1600, 600), (6400, 2400))),
        Factor("examples", scaled((200, 600), (800, 1200), (3200, 4800))),
        Factor("spike", SPIKES, packed=True),
        seeds(10, 20, 20),
    ),
    (Table("spikes", {"largest": float, "above_hundredth": float}),),
    measure_spikes,
    where=lambda cell: cell["dimensions"] / cell["examples"] in (0.5, 2.0),
    cost=lambda cell: 0.2 * (min(cell["dimensions"], cell["examples"]) / 800) ** 2.5,
    memory=lambda cell: 8.0 * 3 * cell["dimensions"] * cell["examples"],
)

TRIALS = (widths, clusters, resamples, exact, density, separability, batches, spikes)
