"""Trials on trained networks: how far a small GPT is from Bayesian model averaging over the concepts it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay import Factor, Pack, Table, Trial, scaled, seeds
from studies.icl.diversity import diversity
from studies.icl.networks import (
    BATCHES,
    BLOCK,
    CORE,
    POOL,
    SYMBOLS,
    TEST,
    TESTS,
    VALIDATION,
    VALIDATIONS,
    WIDTHS,
    Fresh,
    concepts,
    distinct,
    divergence,
    flops,
    gaps,
    log_laws,
    new_networks,
    prior_of,
    prompts,
    stack_bytes,
)  # fmt: skip

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from theory.icl.gpt import StackedGPT

# --- Regret -----------------------------------------------------------------------------------------------------------

PREDICTORS = ("net", "bma", "plug-in", "prior average", "context counts", "tempered", "leaking")
"""The network, what it should be, its rivals (as in `theory.icl.bayes`), and two broken forms of Bayes."""
RIVALS = PREDICTORS[2:5]
SOURCES = ("its concepts", "other concepts")
"""Where test prompts come from: the concepts of pretraining, or as many that were never seen."""
REGRET_COLUMNS = ("sampled", "expected", "kl", "tv", "to_net")


def judged_against_bayes(
    model: StackedGPT, tables: torch.Tensor, source: torch.Tensor, test: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Means over test prompts of one seed, [5, K, predictors, T] in the order of `REGRET_COLUMNS`.

    Prompts follow the tables `source`, exact Bayes averages over `tables`, [1, M, C, R] each. Regret is cumulative, in nats,
    against the concept behind the prompt: `sampled` on its responses, `expected` with each step averaged over its own
    response, which a leaking predictor does not allow. `kl`, `tv` from BMA and `to_net`, KL(predictor ‖ net), are single
    steps.
    """
    import torch

    from theory.icl import bayes

    z, c, r = test
    prior, V = prior_of(tables), tables.shape[-1]
    true = bayes.truth(source, z, c)
    rows = {
        "bma": bayes.bma(tables, prior, c, r),
        "plug-in": bayes.plug_in(tables, prior, c, r),
        "prior average": bayes.prior_average(tables, prior, c),
        "context counts": bayes.context_counts(c, r, V, V),
        "tempered": bayes.bma(tables, prior, c, r, power=0.5),
        "leaking": bayes.bma(tables, prior, c, r, leak=True),
    }
    average, log_net, log_true = rows["bma"], log_laws(model, c[0], r[0]), true.log()

    def seen(log_p: torch.Tensor) -> torch.Tensor:
        return log_p.gather(-1, r.expand(len(log_p), -1, -1).unsqueeze(-1)).squeeze(-1)

    best, found = seen(log_true), []
    for name in PREDICTORS:
        p, log_p = (log_net.exp(), log_net) if name == "net" else (rows[name], rows[name].log())
        each = (
            (best - seen(log_p)).mean(1).cumsum(-1),
            divergence(true, log_p).mean(1).cumsum(-1),
            divergence(average, log_p).mean(1),
            bayes.tv(average, p).mean(1),
            divergence(p, log_net).mean(1),
        )
        found.append(torch.stack([row.expand(model.members, -1).cpu() for row in each]))
    return torch.stack(found, 2)


def measure_nets(pack: Pack) -> dict[str, pd.DataFrame]:
    """Train on fresh prompts, then compare with exact Bayes and its rivals at every length of the prompt."""
    import torch

    from theory.icl.layouts import Architecture
    from theory.icl.pretraining import train_gpt

    layout, M, T = pack["layout"], pack["concepts"], pack["length"]
    own, index = distinct(pack.column("seed"))
    tables = concepts(layout, M, own, pack.device)
    d, V = WIDTHS[layout], SYMBOLS[layout]
    model = new_networks(Architecture(layout, T, V, V, d, pack["layers"], max(2, d // 32)), pack)
    batches = Fresh(lambda part, n: prompts(layout, tables, n, T, own, part)[1:], BATCHES[layout], index)
    training = train_gpt(model, batches, pack["steps"], rates=torch.tensor(pack.column("lr")), record=(0,))
    _, c, r = prompts(layout, tables, VALIDATIONS, T, own, VALIDATION)
    validation = model.losses(c[index.to(c.device)], r[index.to(r.device)])

    found = torch.empty(len(REGRET_COLUMNS), len(pack), len(SOURCES), len(PREDICTORS), T, dtype=torch.float64)
    for s, name in enumerate(SOURCES):
        source = concepts(layout, M, own, pack.device, foreign=name != SOURCES[0])
        # A fifth of the prompts will do where the two sides are far from equal.
        test = prompts(layout, source, TESTS[layout] // (1 if name == SOURCES[0] else 5), T, own, TEST)
        for u in range(len(own)):
            rows = (index == u).nonzero().flatten()
            nets = model.with_parameters(model.parameters[rows.to(pack.device)])
            one = slice(u, u + 1)
            z, c, r = (t[one] for t in test)
            found[:, rows, s] = judged_against_bayes(nets, tables[one], source[one], (z, c, r))
    axes = {"prompts": SOURCES, "predictor": PREDICTORS, "t": range(1, T + 1)}
    return {
        "nets": pack.frame(axes, **dict(zip(REGRET_COLUMNS, found, strict=True))),
        "fits": pack.frame(first_loss=training.losses[0], validation=validation.double()),
    }


def _paired(cell: Mapping[str, Any]) -> bool:
    """Two families of concepts: four that are told apart soon, read long, and eight that are not, read briefly."""
    return cell["layout"] == "token" or (cell["concepts"], cell["length"]) in ((4, 16), (4, 48), (8, 24))


def _seconds(cell: Mapping[str, Any], T: int, L: int, judged: float = 4e-7) -> float:
    """Training, and `judged` seconds for each probability of a test prompt; `concepts` enter the posterior."""
    layout, steps = cell.get("layout", "pair"), cell["steps"]
    S, B, d = (2 if layout == "token" else 1) * T, BATCHES[layout], WIDTHS[layout]
    tests = TESTS[layout] * T * (judged * SYMBOLS[layout] + 2e-8 * cell.get("concepts", 8))
    return flops(d, L, S, B * S, steps) / CORE + 2e-4 * steps + tests


def _bytes(cell: Mapping[str, Any], T: int, L: int) -> float:
    layout = cell.get("layout", "pair")
    S, d = (2 if layout == "token" else 1) * T, WIDTHS[layout]
    tests = 12.0 * 8 * TESTS[layout] * T * SYMBOLS[layout]
    fresh = 3.0 * 8 * BLOCK * BATCHES[layout] * T
    return stack_bytes(d, L, S, BATCHES[layout], max(2, d // 32)) + tests + fresh


nets = Trial(
    "nets",
    (
        Factor("layout", scaled(("pair",), ("pair",), ("token",))),
        Factor("concepts", scaled((4,), (4, 8), tuple(2**k for k in range(3, 13)))),
        Factor("length", scaled((16,), (24, 48), (32, 256))),
        Factor("layers", scaled((1,), (2,), (2, 6, 12))),
        Factor("steps", scaled((5, 15, 150), (15, 150, 1500), (1_000, 10_000, 100_000))),
        Factor("lr", scaled((1e-3, 1e-2), (1e-3, 1e-2, 2e-2), (1e-4, 3e-4, 1e-3)), packed=True),
        seeds(2, 5, 5),
    ),
    (
        Table("nets", {"prompts": str, "predictor": str, "t": int} | dict.fromkeys(REGRET_COLUMNS, float)),
        Table("fits", {"first_loss": float, "validation": float}),
    ),
    measure_nets,
    where=_paired,
    cost=lambda cell: _seconds(cell, cell["length"], cell["layers"], judged=1.4e-6),
    memory=lambda cell: _bytes(cell, cell["length"], cell["layers"]),
    gpus={"cluster": 1.0},
)


# --- Pretraining sets of finite size ----------------------------------------------------------------------------------

POOL_LENGTH, POOL_CONCEPTS, POOL_RATE, CHECK = 16, 8, 1e-2, 100
"""Length of a sequence, number of concepts, rate, and steps between two looks at the validation loss."""


def measure_pools(pack: Pack) -> pd.DataFrame:
    """Train on N_p stored sequences with early stopping, and measure the distance to exact Bayes on new ones."""
    import torch

    from theory.icl.bayes import bma, log_loss
    from theory.icl.layouts import Architecture
    from theory.icl.pretraining import PoolBatches, train_gpt

    T, V, sizes = POOL_LENGTH, SYMBOLS["pair"], pack.column("sequences")
    own, index = distinct(pack.column("seed"))
    tables = concepts("pair", POOL_CONCEPTS, own, pack.device)
    _, c, r = prompts("pair", tables, max(sizes), T, own, POOL)
    _, *held = prompts("pair", tables, VALIDATIONS, T, own, VALIDATION)
    held_c, held_r = (t[index.to(t.device)] for t in held)
    _, *test = prompts("pair", tables, TESTS["pair"], T, own, TEST)

    model = new_networks(Architecture("pair", T, V, V, WIDTHS["pair"], pack["layers"]), pack)
    offsets = [max(sizes) * u for u in index.tolist()]
    order = pack.column("seed")
    batches = PoolBatches(c.flatten(0, 1), r.flatten(0, 1), BATCHES["pair"], sizes, order, offsets)
    training = train_gpt(
        model,
        batches,
        pack["steps"],
        rates=POOL_RATE,
        validate=lambda nets: nets.losses(held_c, held_r),
        every=CHECK,
    )
    final = gaps(model, index, tables, *test)
    assert training.best is not None  # there is validation
    stopped = gaps(model.with_parameters(training.best), index, tables, *test)
    fitted = torch.empty(len(pack), dtype=torch.float64)
    for k, (u, size) in enumerate(zip(index.tolist(), sizes, strict=True)):
        seen_c, seen_r = (t[u : u + 1, : min(size, VALIDATIONS)] for t in (c, r))
        average = bma(tables[u : u + 1], prior_of(tables), seen_c, seen_r)
        fitted[k] = model.narrow(k, 1).losses(seen_c, seen_r).double().cpu()[0] - log_loss(average, seen_r).mean().cpu()
    return pack.frame(
        kl=stopped[0],
        tv=stopped[1],
        final_kl=final[0],
        final_tv=final[1],
        fitted=fitted,
        best_step=training.best_step,
    )


pools = Trial(
    "pools",
    (
        Factor(
            "sequences",
            scaled((64, 256, 1024), (256, 1024, 4096, 16384, 65536), tuple(4**k for k in range(4, 11))),
            packed=True,
        ),
        Factor("layers", (1,)),
        Factor("steps", scaled((200,), (3000,), (100_000,))),
        seeds(2, 4, 8),
    ),
    (
        Table(
            "pools",
            dict.fromkeys(("kl", "tv", "final_kl", "final_tv", "fitted"), float) | {"best_step": int},
        ),
    ),
    measure_pools,
    cost=lambda cell: 1.1 * _seconds(cell, POOL_LENGTH, cell["layers"]),
    memory=lambda cell: _bytes(cell, POOL_LENGTH, cell["layers"]) + 2.0 * 8 * POOL_LENGTH * cell["sequences"],
    gpus={"cluster": 0.1},
)


# --- Depth ------------------------------------------------------------------------------------------------------------

DEPTH_LENGTH, DEPTH_CONCEPTS, DEPTH_RATE = 16, 8, 1e-2


def measure_depths(pack: Pack) -> pd.DataFrame:
    """Train networks of one depth on fresh prompts, and measure the distance to exact Bayes."""
    from theory.icl.layouts import Architecture
    from theory.icl.pretraining import train_gpt

    layout, T = pack["layout"], DEPTH_LENGTH
    own, index = distinct(pack.column("seed"))
    tables = concepts(layout, DEPTH_CONCEPTS, own, pack.device)
    V = SYMBOLS[layout]
    model = new_networks(Architecture(layout, T, V, V, WIDTHS[layout], pack["layers"]), pack)
    batches = Fresh(lambda part, n: prompts(layout, tables, n, T, own, part)[1:], BATCHES[layout], index)
    train_gpt(model, batches, pack["steps"], rates=DEPTH_RATE)
    _, *test = prompts(layout, tables, TESTS[layout], T, own, TEST)
    kl, tv = gaps(model, index, tables, *test)
    return pack.frame(kl=kl, tv=tv)


depths = Trial(
    "depths",
    (
        Factor("layout", ("pair", "markov")),
        Factor("layers", scaled((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3, 4, 6, 8))),
        Factor("steps", scaled((60,), (900,), (100_000,))),
        seeds(2, 4, 8),
    ),
    (Table("depths", {"kl": float, "tv": float}),),
    measure_depths,
    cost=lambda cell: _seconds(cell, DEPTH_LENGTH, cell["layers"]),
    memory=lambda cell: _bytes(cell, DEPTH_LENGTH, cell["layers"]),
    gpus={"cluster": 0.1},
)


TRIALS = (nets, pools, depths, diversity)
