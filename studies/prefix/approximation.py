"""Trials on what stands in for a prefix: how far it is from exact prefix attention, what it costs, how well it can be fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from assay import Factor, Pack, Table, Trial, scaled, seeds
from studies.prefix.fitting import fitted
from studies.prefix.prefixes import DIMENSION, KINDS, degrees, feature_map, inputs, largest_map, maps, prefix, weights

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from theory.ntk_attention.attention import Folded
    from theory.ntk_attention.features import FeatureMap


# --- Errors -----------------------------------------------------------------------------------------------------------

L = 32
ARMS = ("folded", "wrong scale", "keys only")
"""As it should be; phi on vectors divided by sqrt(d) instead of its root; Z from the keys in the place of the values."""
ERROR_COLUMNS = ("error", "relative", "logit", "value", "share")


def measure_errors(pack: Pack) -> pd.DataFrame:
    """Fold prefixes with every map and compare with exact prefix attention on the same inputs."""
    import torch

    cells = list(zip(*(pack.column(name) for name in ("kind", "spread", "seed")), strict=True))
    names = maps(pack["d"])
    found = torch.empty(len(ERROR_COLUMNS), len(pack), len(ARMS), len(names), dtype=torch.float64)
    negative = torch.empty(len(pack), len(ARMS), len(names), dtype=torch.bool)
    for seed in dict.fromkeys(pack.column("seed")):  # the cells of a seed share its random features
        rows = [i for i, cell in enumerate(cells) if cell[2] == seed]
        settings = [cells[i][:2] for i in rows]
        found[:, rows], negative[rows] = errors_of_seed(pack["m"], pack["d"], settings, seed, pack.device)
    columns = dict(zip(ERROR_COLUMNS, found, strict=True))
    return pack.frame({"arm": ARMS, "map": names}, **columns, nonpositive=negative)


def errors_of_seed(
    m: int, d: int, settings: Sequence[tuple[str, float]], seed: int, device: str
) -> tuple[Tensor, Tensor]:
    """Errors of prefixes of some kinds and spreads, which share weights and random features.

    Returns numbers in the order of `ERROR_COLUMNS`, [columns, settings, arms, maps], and whether a denominator is not
    positive, [settings, arms, maps].
    """
    import torch

    from theory.ntk_attention.attention import Folded, nonpositive_denominators, ntk_attention, prefix_attention

    drawn = [(*inputs((L,), d, seed, spread, "errors"), *prefix(kind, m, d, seed)) for kind, spread in settings]
    q, k, v, pk, pv = (torch.stack(parts).to(device) for parts in zip(*drawn, strict=True))
    exact = prefix_attention(q, k, v, pk, pv)
    logits = q @ pk.mT / math.sqrt(d)
    theirs, ours = logits.logsumexp(-1), (q @ k.mT / math.sqrt(d)).logsumexp(-1)
    share = torch.sigmoid(theirs - ours).amax(-1)
    largest = torch.maximum(v.abs().amax((1, 2)), pv.abs().amax((1, 2)))
    names = maps(d)
    found = torch.empty(len(ERROR_COLUMNS), len(settings), len(ARMS), len(names), dtype=torch.float64)
    found[2:] = torch.stack([logits.abs().amax((1, 2)), largest, share])[:, :, None, None].cpu()
    negative = torch.empty(len(settings), len(ARMS), len(names), dtype=torch.bool)
    for arms, root in ((("folded", "keys only"), 1.0), (("wrong scale",), d**-0.5)):
        # `root` of d^(-1/2) where it should be 1, half of it on either side of the map.
        scaled_q, scaled_pk = q * math.sqrt(root), pk * math.sqrt(root)
        scaled_k = k / math.sqrt(root)  # the input's own part keeps its logits
        values = torch.cat([pv, pk], dim=-1) if "keys only" in arms else pv
        for j, (phi, folded) in enumerate(fold_all(d, seed, scaled_pk, values)):
            for arm in arms:
                Z = folded.Z[..., d:] if arm == "keys only" else folded.Z[..., :d]
                one, a = Folded(Z, folded.kappa), ARMS.index(arm)
                off = ntk_attention(scaled_q, scaled_k, v, phi, one) - exact
                found[0, :, a, j] = off.abs().amax((1, 2)).cpu()
                found[1, :, a, j] = (off.norm(dim=(1, 2)) / exact.norm(dim=(1, 2))).cpu()
                negative[:, a, j] = nonpositive_denominators(scaled_q, scaled_k, phi, one).any(-1).cpu()
    return found, negative


def fold_all(d: int, seed: int, keys: Tensor, values: Tensor) -> Iterator[tuple[FeatureMap, Folded]]:
    """Every map with what it makes of a prefix; lower degrees are the first features of the highest."""
    from theory.ntk_attention.attention import Folded, fold

    highest = fold(feature_map(f"degree {max(degrees(d))}", d), keys, values)
    for name in maps(d):
        phi = feature_map(name, d, seed)
        if name.startswith("degree"):
            yield phi, Folded(highest.Z[..., : phi.size, :], highest.kappa[..., : phi.size])
        else:
            yield phi, fold(phi, keys, values)


errors = Trial(
    "errors",
    (
        Factor("m", scaled((64, 1024), tuple(4**k for k in range(2, 8)), tuple(4**k for k in range(2, 10)))),
        DIMENSION,
        Factor("kind", KINDS, packed=True),
        Factor("spread", scaled((0.1, 0.3), (0.1, 0.3, 1.0), (0.1, 0.3, 1.0)), packed=True),
        seeds(3, 12, 12),
    ),
    (Table("errors", {"arm": str, "map": str} | dict.fromkeys(ERROR_COLUMNS, float) | {"nonpositive": bool}),),
    measure_errors,
    cost=lambda cell: 0.006 + 2e-5 * cell["m"],
    memory=lambda cell: 8.0 * (cell["m"] * (4 * L + 10 * cell["d"]) + 4 * cell["d"] * largest_map(cell["d"])),
    gpus={"cluster": 0.25},
)


# --- Centred Gaussian prefixes ----------------------------------------------------------------------------------------


def measure_parity(pack: Pack) -> pd.DataFrame:
    """The output of the prefix alone along its limit W_V^T W_K q / sqrt(d), by degree, over that of exact attention."""
    import torch

    from theory.ntk_attention.attention import fold, prefix_mass
    from theory.ntk_attention.features import Taylor

    m, d = pack["m"], pack["d"]
    factors = torch.empty(len(pack), len(degrees(d)), dtype=torch.float64)
    for c, (variance, seed) in enumerate(zip(pack.column("variance"), pack.column("seed"), strict=True)):
        _, W_K, W_V = weights(d, seed)
        q, *_ = inputs((L,), d, seed, 1.0, "parity")
        along = q @ W_K.T
        q = q * (math.sqrt(variance * d) / along.norm(dim=-1, keepdim=True))  # |W_K q|^2 / d = variance for every query
        limit = (q @ W_K.T @ W_V / math.sqrt(d)).to(pack.device)
        q, (pk, pv) = q.to(pack.device), (x.to(pack.device) for x in prefix("gaussian", m, d, seed))
        exact = torch.nn.functional.scaled_dot_product_attention(q[None], pk[None], pv[None])[0]
        for g in degrees(d):
            phi = Taylor(d, g)
            folded = fold(phi, pk, pv)
            out = phi(q * d**-0.25) @ folded.Z / prefix_mass(q, phi, folded).unsqueeze(-1)
            factors[c, g] = ((out * limit).sum() / (exact * limit).sum()).cpu()
    return pack.frame({"degree": degrees(d)}, factor=factors)


parity = Trial(
    "parity",
    (
        Factor("m", scaled((4**6,), (4**8,), (4**10,))),
        DIMENSION,
        Factor("variance", (0.25, 1.0), packed=True),
        seeds(3, 6, 12),
    ),
    (Table("parity", {"degree": int, "factor": float}),),
    measure_parity,
    cost=lambda cell: 1.4e-5 * cell["m"],
    memory=lambda cell: 5e8,
    gpus={"cluster": 0.25},
)


# --- Costs ------------------------------------------------------------------------------------------------------------

COST_ARMS = ("exact", "folded", "rebuilt")
"""Exact prefix attention; NTK-Attention on a folded prefix; the same when it folds the prefix at every call."""
LENGTHS = tuple(4**k for k in range(3, 10))
"""m of the counts, and of the widest maps."""
SIZE_MAPS = ("ELU+1", "degree 1", "random")


def calls(arm: str, tensors: Sequence[Tensor], fused: bool) -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
    """For q, k, v and a prefix's keys and values: a function of no arguments that does one forward of an arm, with what it may prepare beforehand, and its inputs."""
    from theory.ntk_attention.attention import fold, ntk_attention, prefix_attention
    from theory.ntk_attention.features import Elu1

    q, k, v, pk, pv = tensors
    phi = Elu1(q.shape[-1])
    if arm == "exact":
        return (lambda: prefix_attention(q, k, v, pk, pv, fused=fused)), (q, k, v, pk, pv)
    if arm == "rebuilt":
        return (lambda: ntk_attention(q, k, v, phi, fold(phi, pk, pv), fused=fused)), (q, k, v, pk, pv)
    folded = fold(phi, pk, pv)
    return (lambda: ntk_attention(q, k, v, phi, folded, fused=fused)), (q, k, v, folded.Z, folded.kappa)


def measure_counts(pack: Pack) -> dict[str, pd.DataFrame]:
    """Count operations, bytes alive and parameters on tensors without contents; nothing is computed."""
    import torch

    from theory.ntk_attention.attention import fold
    from theory.ntk_attention.costs import counted_flops, peak_bytes

    tokens, d = pack["tokens"], pack["d"]
    flops, held = (torch.empty(1, len(COST_ARMS), len(LENGTHS), dtype=torch.int64) for _ in range(2))
    sizes = torch.empty(1, len(SIZE_MAPS), len(LENGTHS), 3, dtype=torch.int64)
    for j, m in enumerate(LENGTHS):
        empty = [torch.empty(n, d, device="meta") for n in (tokens, tokens, tokens, m, m)]
        for a, arm in enumerate(COST_ARMS):
            function, given = calls(arm, empty, fused=False)
            flops[0, a, j], held[0, a, j] = counted_flops(function), peak_bytes(function, given)
        for i, name in enumerate(SIZE_MAPS):
            phi = feature_map(name, d)
            folded = fold(phi, *empty[3:])
            sizes[0, i, j] = torch.tensor([phi.size, folded.Z.numel(), folded.kappa.numel()])
    named = dict(zip(("features", "z_size", "kappa_size"), sizes.unbind(-1), strict=True))
    return {
        "counts": pack.frame({"arm": COST_ARMS, "m": LENGTHS}, flops=flops, held_bytes=held),
        "sizes": pack.frame({"map": SIZE_MAPS, "m": LENGTHS}, **named),
    }


counts = Trial(
    "counts",
    (
        Factor("tokens", scaled((256,), (64, 256, 1024), (1024, 32768))),
        Factor("d", scaled((64,), (16, 64, 128), (64, 128))),
    ),
    (
        Table("counts", {"arm": str, "m": int, "flops": int, "held_bytes": int}),
        Table("sizes", {"map": str, "m": int, "features": int, "z_size": int, "kappa_size": int}),
    ),
    measure_counts,
    cost=lambda cell: 1.2,
)

REPEATS = 7


def measure_times(pack: Pack) -> pd.DataFrame:
    """Least wall time of a forward over repeats, on one thread; lengths, all powers of 4 up to the longest, and arms take turns."""
    import time

    import torch

    tokens, d, grid = pack["tokens"], pack["d"], [4]
    while grid[-1] < pack["longest"]:
        grid.append(4 * grid[-1])
    wait = torch.cuda.synchronize if pack.device.startswith("cuda") else (lambda: None)
    best = torch.full((len(pack), len(COST_ARMS), len(grid)), math.inf, dtype=torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for c, seed in enumerate(pack.column("seed")):
            functions: dict[tuple[int, int], Callable[[], Tensor]] = {}
            for j, m in enumerate(grid):
                drawn = [_noise((n, d), seed, part).to(pack.device) for part, n in enumerate((tokens,) * 3 + (m,) * 2)]
                functions |= {(a, j): calls(arm, drawn, fused=True)[0] for a, arm in enumerate(COST_ARMS)}
            with torch.no_grad():
                for _ in range(REPEATS):
                    for place, function in functions.items():
                        function()  # unmeasured: touches the memory that the call before it pushed out of the caches
                        wait()
                        start = time.perf_counter()
                        function()
                        wait()
                        best[c][place] = min(float(best[c][place]), time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return pack.frame({"arm": COST_ARMS, "m": grid}, seconds=best)


def _noise(shape: tuple[int, ...], seed: int, part: int) -> Tensor:
    import torch

    from theory.ensemble import normal

    return normal(shape, "prefix", "times", seed, part, dtype=torch.float32)


times = Trial(
    "times",
    (
        Factor("tokens", (64,)),
        Factor("d", (64,)),
        Factor("longest", scaled((4**6,), (4**8,), (4**10,))),
        seeds(3, 4, 5),
    ),
    (Table("times", {"arm": str, "m": int, "seconds": float}),),
    measure_times,
    cost=lambda cell: 2.5,
    memory=lambda cell: 2.0 * 4 * 64 * 2**20,
    gpus={"cluster": 1.0},
)


TRIALS = (errors, parity, counts, times, fitted)
