"""The trial on fitted (Z, kappa): L-BFGS towards exact prefix attention, judged on inputs it was not fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay import Factor, Pack, Table, Trial, scaled, seeds
from studies.prefix.prefixes import DIMENSION, feature_map, inputs, prefix

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    Inputs = tuple[Tensor, Tensor, Tensor]


SEQUENCES, HELD_OUT = 32, 32
"""Inputs that are fitted, and inputs on which the fit is judged."""
FIT_KINDS = ("gaussian", "shifted", "topics")
ITERATIONS = 200
FITTED_MAPS = ("degree 0", "degree 1", "ELU+1")
FIT_COLUMNS = ("fitted", "start", "other_prefix", "training", "nonpositive")
"""Errors on held-out inputs: after the fit, with Z = kappa = 0, against another prefix; the error on the inputs fitted;
and the share of held-out queries whose denominator is not positive."""
LEAK_MAP = "ELU+1"
LEAK_COLUMNS = ("leaked", "nothing", "noise", "leaked_other")
"""Errors where keys and values already hold the prefix: after the fit, with Z = kappa = 0, with the noise the fit starts
from, and after the fit with another prefix among them."""


def tokens(d: int) -> int:
    """Length of an input: with fewer, 32 inputs would hold too few queries for as many features as a head has."""
    return max(16, d // 2)


def blend(plain: Tensor, lse: Tensor, features: Tensor, Z: Tensor, kappa: Tensor) -> Tensor:
    """NTK-Attention [N, d] of queries whose plain attention and log-sum-exp are known: they do not change in a fit."""
    import torch

    prefix_weight = torch.exp(-lse)
    mass = prefix_weight * (features @ kappa.unsqueeze(-1))
    return (plain + prefix_weight * (features @ Z)) / (1 + mass)


def attended(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Plain attention of [S, T, d] and its log-sum-exp, with the inputs' tokens in one row: [S T, d], [S T, 1]."""
    from theory.ntk_attention.attention import plain_attention

    out, lse = plain_attention(q, k, v)
    return out.flatten(0, 1), lse.flatten().unsqueeze(-1)


def fit(
    plain: Tensor, lse: Tensor, features: Tensor, target: Tensor, unit: float, start: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """L-BFGS on the mean squared error over that of zero; Z [r, d] and kappa [r] are counted in `unit`s.

    plain and target are [N, d], lse [N, 1], features [N, r]. The line search never raises this loss, which is large where
    the denominator of a query that is fitted nearly vanishes; nothing keeps the denominators of other queries positive.
    """
    import torch

    Z, kappa = (x.clone().requires_grad_() for x in start)
    size = target.square().mean()
    optimiser = torch.optim.LBFGS(
        [Z, kappa],
        max_iter=ITERATIONS,
        max_eval=4 * ITERATIONS,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = (blend(plain, lse, features, unit * Z, unit * kappa) - target).square().mean() / size
        found.backward()
        return found.detach()

    optimiser.step(loss)
    return unit * Z.detach(), unit * kappa.detach()


def measure_fits(pack: Pack) -> dict[str, pd.DataFrame]:
    """Fit (Z, kappa) to exact prefix attention on some inputs, and judge it on others."""
    import torch

    # One by one: a fit follows rounding, which depends on how many problems are multiplied together.
    cells = zip(pack.column("kind"), pack.column("spread"), pack.column("seed"), strict=True)
    found = [fit_cell(pack["m"], pack["d"], kind, spread, seed, pack.device) for kind, spread, seed in cells]
    fits, leaks = (torch.stack(each) for each in zip(*found, strict=True))
    return {
        "fits": pack.frame({"map": FITTED_MAPS}, **dict(zip(FIT_COLUMNS, fits.unbind(2), strict=True))),
        "leaks": pack.frame(**dict(zip(LEAK_COLUMNS, leaks.unbind(1), strict=True))),
    }


def fit_cell(m: int, d: int, kind: str, spread: float, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Numbers in the order of `FIT_COLUMNS` for each map, [maps, columns], and of `LEAK_COLUMNS`, [columns]."""
    import torch

    from theory.ntk_attention.attention import Folded, nonpositive_denominators, ntk_attention, prefix_attention

    def drawn(part: str, count: int) -> Inputs:
        q, k, v = inputs((count, tokens(d)), d, seed, spread, part)
        return q.to(device), k.to(device), v.to(device)

    def prefixed(draw: int) -> tuple[Tensor, Tensor]:
        keys, values = prefix(kind, m, d, seed, draw)
        return keys.to(device), values.to(device)

    train, held = drawn("fitted", SEQUENCES), drawn("held out", HELD_OUT)
    own, other = prefixed(0), prefixed(1)
    target = prefix_attention(*train, *own).flatten(0, 1)
    wanted, wanted_other = prefix_attention(*held, *own), prefix_attention(*held, *other)
    plain, lse = attended(*train)
    plain_held = attended(*held)[0].view_as(wanted)

    def error(out: Tensor, exact: Tensor, plain: Tensor) -> Tensor:
        """||out - exact|| / ||plain - exact||, Frobenius norms over all inputs."""
        return (out - exact).norm() / (plain - exact).norm()

    rows = []
    for name in FITTED_MAPS:
        phi = feature_map(name, d)
        features = phi(train[0].flatten(0, 1) * d**-0.25)
        nothing = Folded(target.new_zeros(phi.size, d), target.new_zeros(phi.size))
        Z, kappa = fit(plain, lse, features, target, float(m), (nothing.Z, nothing.kappa))
        fitted, (q, k, _) = Folded(Z, kappa), held
        out = ntk_attention(*held, phi, fitted)
        row = (
            error(out, wanted, plain_held),
            error(ntk_attention(*held, phi, nothing), wanted, plain_held),
            error(out, wanted_other, plain_held),
            error(blend(plain, lse, features, Z, kappa), target, plain),
            nonpositive_denominators(q, k, phi, fitted).double().mean(),
        )
        rows.append(torch.stack(row).cpu())

    phi = feature_map(LEAK_MAP, d)
    features = phi(train[0].flatten(0, 1) * d**-0.25)
    at_first = noise(phi.size, d, seed)
    start = Folded(at_first[0].to(device), at_first[1].to(device))
    with_own, with_other = leaking(*held, *own), leaking(*held, *other)
    leaked = Folded(*fit(*attended(*leaking(*train, *own)), features, target, float(m), (start.Z, start.kappa)))
    outs = (
        ntk_attention(*with_own, phi, leaked),
        ntk_attention(*with_own, phi, Folded(0 * start.Z, 0 * start.kappa)),
        ntk_attention(*with_own, phi, Folded(m * start.Z, m * start.kappa)),
        ntk_attention(*with_other, phi, leaked),
    )
    leaks = torch.stack([error(out, wanted, torch.zeros_like(wanted)) for out in outs])
    return torch.stack(rows), leaks.cpu()


def leaking(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor) -> Inputs:
    """Inputs whose keys and values hold the prefix itself, as in the published script on this error."""
    import torch

    lead = k.shape[:-2]
    keys, values = (torch.cat([x.expand(*lead, -1, -1), y], dim=-2) for x, y in ((pk, k), (pv, v)))
    return q, keys, values


def noise(features: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Where a fit starts that must come to nothing; kappa is positive."""
    from theory.ensemble import normal

    drawn = normal((features, d + 1), "prefix", "start", seed) / 10
    return drawn[:, :d], drawn[:, d].abs()


fitted = Trial(
    "fitted",
    (
        Factor("m", scaled((2, 64), tuple(2**k for k in range(1, 14, 3)), tuple(2**k for k in range(1, 19)))),
        DIMENSION,
        Factor("kind", FIT_KINDS, packed=True),
        Factor("spread", scaled((0.3,), (0.3, 1.0), (0.3, 1.0)), packed=True),
        seeds(3, 8, 10),
    ),
    (
        Table("fits", {"map": str} | dict.fromkeys(FIT_COLUMNS, float)),
        Table("leaks", dict.fromkeys(LEAK_COLUMNS, float)),
    ),
    measure_fits,
    cost=lambda cell: 0.4 + 6e-5 * cell["m"],
    memory=lambda cell: 8.0 * SEQUENCES * cell["m"] * (8 * cell["d"] + 3 * tokens(cell["d"])),
    gpus={"cluster": 1.0},
)
