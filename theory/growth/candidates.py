"""All candidates of one growth decision scored together, from one backward pass and one factorisation.

An expansion that preserves the function changes no old row of F = BᵀB, it only adds columns B_n for its new parameters. So
with the kernel K = BBᵀ, its damped factor K + δ = LLᵀ and z = (K + δ)⁻¹w of the network as it is (see `scores`),

    η' − η = δ tᵀ(1 + WᵀW)⁻¹t,    t = B_nᵀz,   W = L⁻¹B_n,

which is never negative. The gradients at the network's own places are those that its one backward pass gives; a candidate
needs a forward pass only, for what its new parameters read:

    identity unit    its conv, norm and slopes read the end of the block; the gradient at each is that at the block's end
    new channels     the weights from them to old channels, in all that reads the block: values of the new channels,
                     gradient where they are read. Their own weights, norms and slopes get no gradient, as what leaves
                     them is zero

Scoring a candidate by itself, `scores.expansion_score` of the expanded network, gives the same number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from theory.growth.kfac import kfac_terms, kronecker_score, layer
from theory.growth.network import GrowingCNN, parameter_count
from theory.growth.scores import DIAGONAL_EPSILON, KINDS, ROOTED, coordinates, cotangents, diagonal_score, gram, limit
from theory.growth.solves import check_damping, damped_cholesky, squares
from theory.growth.taps import Tap, pull_back, stacked_rows

# Relative change of values that an expansion which preserves the function may make by rounding, in networks of a dtype.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Scores:
    """Scores of one decision, in the order of the candidates.

    current    η of the network as it is, [K]
    expanded   η after each candidate, [candidates, K]
    limit      λ, which none can exceed, [K]; NaN for kinds that have no such bound
    added      number of new parameters of each candidate
    """

    current: Tensor
    expanded: Tensor
    limit: Tensor
    added: tuple[int, ...]


@dataclass(frozen=True)
class Added:
    """New parameters at one place of an expanded network.

    tap     what they read; a weight without bias where an old map got more inputs
    delta   the gradients at the map's outputs, [K, V, N, ...], from the network before
    whole   for an old map that got more inputs: all that it reads, new and old, at its old outputs; None for a new map
    """

    tap: Tap
    delta: Tensor
    whole: Tap | None


def score_candidates(
    net: GrowingCNN,
    candidates: Sequence[GrowingCNN],
    x: Tensor,
    y: Tensor,
    *,
    kind: str = "ggn",
    damping: float = 1e-3,
    loss: str = "xent",
) -> Scores:
    """Return the scores of a network and of its expansions on examples x [N, c, h, w] or [K, ...], y [N, C] or [K, ...].

    Works in float64 whatever the precision of the networks. Then the scores are those of each candidate by itself to
    1e-8, but for calibrated norms in float32, which are the identity to single precision only: there to 1e-4. damping is
    δ > 0; for emp_diag it is ε, 0 for its default.

    Raises ValueError for no candidates, an unknown kind, δ = 0 where it must be positive, and a candidate that is no
    function-preserving expansion: score such a network by itself.
    """
    if not candidates:
        raise ValueError("no candidates: a decision needs at least one")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} of score; there is {', '.join(KINDS)}")
    check_damping(damping, positive=kind in ROOTED)
    x, y = x.double(), y.double()
    net = net.copy(torch.float64)
    f, taps = net.taps(x)
    rooted = {"emp_diag": "emp_full", "kfac": "ggn"}.get(kind, kind)
    v, w = cotangents(rooted, f.detach(), y, loss), coordinates(rooted, f.detach(), y, loss)
    found = dict(zip((tap.name for tap in taps), zip(taps, pull_back(f, taps, v), strict=True), strict=True))
    old = [tap for tap in taps if tap.kind != "site"]
    deltas = [found[tap.name][1] for tap in old]
    new = [_additions(net, candidate, f.detach(), found, x) for candidate in candidates]
    if kind in ROOTED:
        current, gains = _rooted_gains(gram(old, deltas), new, w, damping)
        bound = limit(kind, f, y, loss)
    else:
        bound = torch.full_like(w[:, 0], torch.nan)
        if kind == "emp_diag":
            epsilon = damping or DIAGONAL_EPSILON
            current = diagonal_score(stacked_rows(old, deltas), epsilon)
            gains = [_total(diagonal_score(_rows([part]), epsilon) for part in parts) for parts in new]
        else:
            current = _total(kfac_terms(old, deltas, w, damping))
            gains = [_total(_kfac_gain(part, found, w, damping) for part in parts) for parts in new]
    count = parameter_count(net.architecture)
    added = tuple(parameter_count(candidate.architecture) - count for candidate in candidates)
    return Scores(current, current + torch.stack(gains), bound, added)


def _additions(
    net: GrowingCNN, expanded: GrowingCNN, f: Tensor, found: Mapping[str, tuple[Tap, Tensor]], x: Tensor
) -> list[Added]:
    """Return where an expanded network has new parameters with a gradient, from a forward pass of what differs and after.

    f, and `found` by name: outputs and taps with their gradients of the network before, of which K and N are the same.
    Raises ValueError if the expansion does not preserve the function: values or outputs that changed, weights that
    leave new channels and are not zero, an inserted unit that is not the identity.
    """
    tolerance = _TOLERANCE[expanded.dtype]
    expanded = expanded.copy(torch.float64)
    first = _first_change(net, expanded)
    after, taps = expanded.taps(x, (first, {name: tap for name, (tap, _) in found.items()}) if first > 1 else None)
    if not _same(after, f, tolerance):
        change = float((after - f).detach().abs().max())
        raise ValueError(f"the candidate changes the function, by up to {change:.3g}: score it as a network of its own")
    added = []
    for tap in taps:
        if tap.kind == "site":
            continue
        if tap.name not in found:
            block = tap.name.split(".")[0]
            site, delta = found[f"{block}.site"]
            if tap.kind == "conv" and not _same(tap.inputs, site.inputs, tolerance):
                raise ValueError(f"the new unit of {tap.name!r} is not at the end of its block: score it by itself")
            added.append(Added(tap, delta, None))
        elif tap.kind in ("conv", "linear") and tap.inputs.shape[2] > found[tap.name][0].inputs.shape[2]:
            before, delta = found[tap.name]
            fresh = _new_inputs(tap, before, tolerance)
            out = before.outputs.shape[2]
            weight = expanded.parameters[tap.parameters[0]][:, :out]
            if bool(weight[:, :, fresh].any()):
                raise ValueError(f"weights {tap.parameters[0]!r} from new channels are not zero: score it by itself")
            read = replace(tap, parameters=tap.parameters[:1], inputs=tap.inputs[:, :, fresh], outputs=before.outputs)
            added.append(Added(read, delta, replace(tap, outputs=before.outputs)))
    if not added:
        raise ValueError("the candidate has no new parameter with a gradient: it is no expansion of this network")
    return added


def _first_change(net: GrowingCNN, expanded: GrowingCNN) -> int:
    """Return the first block in which two networks differ, or the last if they do not."""
    blocks = net.architecture.blocks
    for block in range(1, blocks):
        for before, after in ((net.parameters, expanded.parameters), (net.buffers, expanded.buffers)):
            names = {name for name in (*before, *after) if name.startswith(f"block{block}.")}
            if not all(name in before and name in after and torch.equal(before[name], after[name]) for name in names):
                return block
    return blocks


def _rooted_gains(K: Tensor, new: Sequence[Sequence[Added]], w: Tensor, damping: float) -> tuple[Tensor, list[Tensor]]:
    """Return η [K] and, for each candidate, η' − η [K]."""
    L = damped_cholesky(K, damping)
    column = w.unsqueeze(2)
    z = torch.cholesky_solve(column, L)
    current = (torch.bmm(K, column) * z).sum((1, 2))
    gains = []
    for parts in new:
        rows = _rows(parts)
        t = torch.bmm(rows.mT, z)
        if 2 * rows.shape[2] <= rows.shape[1]:
            W = torch.linalg.solve_triangular(L, rows, upper=False)
            solved = torch.cholesky_solve(t, damped_cholesky(squares([W.mT]), 1.0))
            gains.append(damping * (t * solved).sum((1, 2)))
        else:  # many new parameters: (K + δ)⁻¹ − (K' + δ)⁻¹ = (K' + δ)⁻¹B_nB_nᵀ(K + δ)⁻¹ takes less work
            after = damped_cholesky(K + squares([rows]), damping)
            gains.append(damping * (torch.bmm(rows, t) * torch.cholesky_solve(column, after)).sum((1, 2)))
    return current, gains


def _kfac_gain(part: Added, found: Mapping[str, tuple[Tap, Tensor]], w: Tensor, damping: float) -> Tensor:
    """Return what new parameters add to the K-FAC score, [K]."""
    if part.whole is None:
        return kfac_terms([part.tap], [part.delta], w, damping)[0]
    before = kronecker_score(layer(found[part.tap.name][0], part.delta, w), damping)
    return kronecker_score(layer(part.whole, part.delta, w), damping) - before


def _new_inputs(tap: Tap, before: Tap, tolerance: float) -> slice:
    """Return which inputs of a map are new: those without which it reads what it read before."""
    c = before.inputs.shape[2]
    k = tap.inputs.shape[2] - c
    for start in range(c, -1, -1):
        left = torch.cat([tap.inputs[:, :, :start], tap.inputs[:, :, start + k :]], 2)
        if _same(left, before.inputs, tolerance):
            return slice(start, start + k)
    raise ValueError(f"tap {tap.name!r} no longer reads what it read before: the candidate changes the function")


def _rows(parts: Sequence[Added]) -> Tensor:
    return stacked_rows([part.tap for part in parts], [part.delta for part in parts])


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


def _same(a: Tensor, b: Tensor, tolerance: float) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * (1 + float(b.abs().max()))
