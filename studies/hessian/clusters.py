"""Trials on Gaussian clusters: how many eigenvalues stand out, and whether there are as many as classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assay import Factor, Pack, Table, Trial, scaled, seeds
from studies.hessian.networks import (
    COUNTS,
    TRAINING,
    count_outliers,
    each_group,
    member_bytes,
    over_time,
    parameters,
    snapshot,
    trained,
)  # fmt: skip

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from theory.curvature import Curvature
    from theory.ensemble import StackedMLP

# --- Gaussian clusters ------------------------------------------------------------------------------------------------

BLOB_INPUTS, BLOB_WIDTH, BLOB_STEPS, BLOB_RATE = 100, 30, 2000, 0.1
CLUSTERS = scaled((2, 5), (2, 5, 10, 20), (2, 5, 10, 20, 50))
BLOB_STD = {"random": 1.0, "orthogonal": 0.3}


def _relu_or_plain(cell: Mapping[str, Any]) -> bool:
    """The papers' relu networks on true classes; tanh (up to k = 10) and labels at random on random centres only."""
    usual = cell["activation"] == "relu", cell["labels"] == "classes"
    if cell["activation"] == "tanh" and cell["clusters"] > 10:
        return False
    return all(usual) or (cell["centres"] == "random" and any(usual))


def blob_sizes(k: int) -> tuple[int, ...]:
    """Layer sizes of the papers' network on k clusters: 3960 + 31 k parameters."""
    return (BLOB_INPUTS, BLOB_WIDTH, BLOB_WIDTH, k)


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
        return snapshot(curvature, y[rows]) | count_outliers(
            curvature, label[rows], "xent", pack["clusters"], window(pack)
        )

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


clusters = Trial(
    "clusters",
    (
        Factor("activation", ("relu", "tanh")),
        Factor("examples", scaled((100,), (400,), (1000,))),
        Factor("clusters", CLUSTERS),
        Factor("centres", ("random", "orthogonal"), packed=True),
        Factor("labels", ("classes", "random"), packed=True),
        seeds(3, 10, 10),
    ),
    (Table("clusters", {"t": int, **TRAINING, "top": list[float], "residual": float, **COUNTS}),),
    measure_clusters,
    where=_relu_or_plain,
    cost=lambda cell: (1.7 + 0.15 * cell["clusters"]) * cell["examples"] / 400,
    memory=lambda cell: 1.5 * member_bytes(blob_sizes(cell["clusters"]), cell["examples"]),
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
    memory=lambda cell: 24.0 * (cell["examples"] * cell["clusters"]) ** 2,
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
        return snapshot(curvature, y[rows]) | count_outliers(curvature, label[rows], "xent", 2, PAIR_WINDOW)

    return pack.frame(**each_group(state, x, y, "xent", measure))


separability = Trial(
    "separability",
    (
        Factor("width", scaled((4,), (4, 6, 10), (2, 6, 10, 14, 18))),
        Factor("std", (0.25, 0.5, 1.0), packed=True),
        seeds(6, 16, 100),
    ),
    (Table("separability", {**TRAINING, "top": list[float], "residual": float, **COUNTS}),),
    measure_separability,
    cost=lambda cell: 0.06,
    memory=lambda cell: 8.0 * PAIR_EXAMPLES * 5000,
)
