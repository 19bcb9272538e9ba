"""What the trials on trained networks share: factors, the prompts that a seed draws, networks, and their distance to Bayes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from assay import Pack

if TYPE_CHECKING:
    import torch

    from theory.icl.gpt import StackedGPT
    from theory.icl.layouts import Architecture

    Pair = tuple[torch.Tensor, torch.Tensor]

SYMBOLS = {"pair": 3, "markov": 3, "token": 16}
"""C = R of a layout, so that the token layout has a vocabulary of 32."""
FLOOR = 0.02
"""c₀, the least probability of a response."""
ALPHA = {4: 0.3}
"""Dirichlet parameter α of the tables by number of concepts, 0.5 elsewhere: concepts differ enough at every number."""
WIDTHS = {"pair": 16, "markov": 16, "token": 256}
BATCHES = {"pair": 32, "markov": 32, "token": 256}
TESTS = {"pair": 10_000, "markov": 4_000, "token": 1_000}
"""Prompts on which a network is judged."""
VALIDATIONS = 512
"""Prompts on which rates are chosen and training is stopped; none of them is a test prompt."""
BLOCK = 64
"""Training steps whose prompts are drawn at once."""


# --- Prompts ----------------------------------------------------------------------------------------------------------

TEST, VALIDATION, POOL, TRAINING = range(4)


def stream_of(seed: int, part: int) -> int:
    """The seed of a part of the data: test, validation, pool, and from TRAINING on the blocks of fresh prompts."""
    return seed + 1000 * part


def distinct(values: Sequence[Any]) -> tuple[list[Any], torch.Tensor]:
    """Distinct values, sorted, and where each value is among them: what is equal is drawn once."""
    import torch

    own = sorted(set(values))
    return own, torch.tensor([own.index(value) for value in values])


def concepts(layout: str, M: int, own: Sequence[int], device: str, *, foreign: bool = False) -> torch.Tensor:
    """Tables [U, M, C, R] of the concepts of each seed, or M others that no network of the seed has seen."""
    from theory.icl.tasks import concept_tables, markov_tables

    drawn = [stream_of(seed, 1) for seed in own] if foreign else list(own)
    alpha, V = ALPHA.get(M, 0.5), SYMBOLS[layout]
    if layout == "markov":
        return markov_tables(drawn, M, V, FLOOR, alpha, device=device)
    return concept_tables(drawn, M, V, V, FLOOR, alpha, device=device)


def prior_of(tables: torch.Tensor) -> torch.Tensor:
    """The uniform prior over the concepts of tables [U, M, C, R]."""
    import torch

    M = tables.shape[1]
    return torch.full((M,), 1 / M, dtype=tables.dtype, device=tables.device)


def prompts(
    layout: str, tables: torch.Tensor, n: int, T: int, own: Sequence[int], part: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Concepts z [U, n], covariates and responses [U, n, T] of one part of the data."""
    from theory.icl.tasks import chain_pairs, sample_chains, sample_pairs

    drawn = [stream_of(seed, part) for seed in own]
    if layout == "markov":
        z, x = sample_chains(tables, prior_of(tables), n, T, drawn)
        return z, *chain_pairs(x)
    return sample_pairs(tables, prior_of(tables), n, T, drawn)


class Fresh:
    """Batches of prompts never seen before, [K, B, T]: members of one seed see the same.

    `draw(part, n)` returns n prompts of each of U seeds, [U, n, T, ...]; member k is of seed number index[k].
    """

    def __init__(self, draw: Callable[[int, int], Pair], batch: int, index: torch.Tensor) -> None:
        self.draw, self.batch, self.index = draw, batch, index
        self._block = -1
        self._drawn: tuple[torch.Tensor, ...] = ()

    def __call__(self, step: int) -> Pair:
        """Covariates and responses of a step."""
        block, place = divmod(step, BLOCK)
        if block != self._block:
            drawn = self.draw(TRAINING + block, BLOCK * self.batch)
            self._block, self._drawn = block, tuple(t.unflatten(1, (BLOCK, self.batch)) for t in drawn)
        c, r = (t[:, place] for t in self._drawn)
        index = self.index.to(c.device)
        return c[index], r[index]


# --- Networks ---------------------------------------------------------------------------------------------------------


def new_networks(shape: Architecture, pack: Pack) -> StackedGPT:
    """Networks at their start, one per cell; on a GPU they compute in bfloat16."""
    import torch

    from theory.icl.gpt import gaussian_gpt

    autocast = None if pack.device == "cpu" else torch.bfloat16
    return gaussian_gpt(shape, pack.column("seed"), device=pack.device, autocast=autocast)


def log_laws(model: StackedGPT, c: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Log P(r_t = · | prompt) of networks in double precision, [K, n, T, R]."""
    return model.predict(c, r).double().log_softmax(-1)


def divergence(p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) along the last axis, from log q: a network's small probabilities are not rounded to zero."""
    import torch

    return (torch.xlogy(p, p) - p * log_q).sum(-1)


def gaps(
    model: StackedGPT, index: torch.Tensor, tables: torch.Tensor, c: torch.Tensor, r: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(BMA ‖ net) and their total variation, mean over test prompts c, r [U, n, T] and positions, [K] each."""
    import torch

    from theory.icl.bayes import bma, tv

    kls, tvs = (torch.empty(model.members, dtype=torch.float64) for _ in range(2))
    for u in range(len(tables)):
        rows = (index == u).nonzero().flatten()
        average = bma(tables[u : u + 1], prior_of(tables), c[u : u + 1], r[u : u + 1])
        nets = model.with_parameters(model.parameters[rows.to(model.parameters.device)])
        log_net = log_laws(nets, c[u], r[u])
        kls[rows] = divergence(average, log_net).mean((1, 2)).cpu()
        tvs[rows] = tv(average, log_net.exp()).mean((1, 2)).cpu()
    return kls, tvs


def flops(d: int, L: int, S: int, step: float, steps: int) -> float:
    """Floating-point operations of training: weights 6 · 12 d² per token and block, attention 12 S d; `step` tokens."""
    return steps * step * (L * (72 * d * d + 12 * S * d) + 300 * d)


CORE = 1.4e10
"""Operations per second of one core on these shapes."""


def stack_bytes(d: int, L: int, S: int, batch: float, H: int = 2) -> float:
    """Weights, moments and gradients, and the activations of one step, in single precision.

    Attention scores are kept for short sequences only; for long ones the fused kernel forms them as it goes.
    """
    scores = 2 * H * S if S <= 128 else 0
    return 4.0 * (6 * 12 * L * d * d + batch * S * (L * (14 * d + scores) + 4 * d))
