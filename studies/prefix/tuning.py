"""Fine-tuning of pre-trained networks, arm by arm: one grid of learning rates for all, and the same data for a seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from assay import Factor, Pack, Table, Trial, scaled, seeds
from studies.prefix.arms import ARMS, Arm

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from theory.ntk_attention.vit import Adapter

DIGIT_ARMS = (
    "head", "full", "lora-4", "prefix-2", "prefix-8", "prefix-64", "ntk", "ntk-zeros", "ntk-frozen", "ntk-shuffled",
)  # fmt: skip
BACKBONE_ARMS = (
    "head", "full", "lora-8", "lora-16", "prefix-10", "prefix-32", "prefix-50", "prefix-64", "prefix-100", "prefix-200",
    "ntk", "ntk-zeros", "ntk-frozen", "ntk-shuffled",
)  # fmt: skip
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
"""Learning rates that every arm tries on digits: up to where those that train little have passed their best."""
LARGE_RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 3e-1, 1.0, 3.0)
"""And on large networks: smaller ones too, which all of their weights want."""

# --- Digits -----------------------------------------------------------------------------------------------------------

KNOWN, ADAPTATION, TRAINING = 1000, 500, 300
"""Images of pre-training; the first of them that are adapted to, transposed and inverted; and of these the trained on."""
PRETRAINING_STEPS, PRETRAINING_RATE, PRETRAINING_BATCH, BATCH = 300, 3e-3, 50, 25


@lru_cache(maxsize=64)
def digits(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Images [N, 64] with pixels in [-1, 1] and labels [N], by what they are for; a seed draws who is known.

    "known" are pre-trained on and "unseen" the others, both clean. "train", "validation" and "test" are transposed with
    the intensity inverted: two parts of the known ones, and all that are unseen.
    """
    import torch

    from theory.datasets import digit_images
    from theory.ensemble import stream

    held = digit_images()
    clean = torch.tensor(held.images[:, 0] / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(held.labels)
    changed = -clean.mT
    order = torch.randperm(len(labels), generator=stream("prefix", "digits", seed))
    parts = {
        "known": (clean, order[:KNOWN]),
        "unseen": (clean, order[KNOWN:]),
        "train": (changed, order[:TRAINING]),
        "validation": (changed, order[TRAINING:ADAPTATION]),
        "test": (changed, order[KNOWN:]),
    }
    return {name: (images[rows].flatten(1), labels[rows]) for name, (images, rows) in parts.items()}


@lru_cache(maxsize=64)
def pretrained(seed: int) -> torch.Tensor:
    """Weights and head, [1, P], of the network that a seed pre-trains, by itself: it is the same in every pack.

    Kept for the packs that this process measures later.
    """
    from theory.ntk_attention.vit import Adapter, Architecture, StackedViT, first_values, train

    shape, everything = Architecture(), Adapter("full")
    model = StackedViT(shape, everything, None, first_values(shape, everything, [seed]))
    x, y = (part.unsqueeze(0) for part in digits(seed)["known"])
    train(model, x, y, PRETRAINING_STEPS, batch=PRETRAINING_BATCH, rates=PRETRAINING_RATE, data_seeds=[seed])
    return model.trained


def measure_pretraining(pack: Pack) -> pd.DataFrame:
    """Accuracy of pre-trained networks on unseen images, clean ones and those of the task they will be adapted to."""
    import torch

    from theory.ntk_attention.vit import Adapter, Architecture, StackedViT

    rows = []
    for seed in pack.column("seed"):
        model = StackedViT(Architecture(), Adapter("full"), None, pretrained(seed))
        data = digits(seed)
        rows.append([model.judged(*(t.unsqueeze(0) for t in data[part]))[1] for part in ("unseen", "test")])
    clean, zero_shot = torch.tensor(rows, dtype=torch.float64).T
    return pack.frame(clean=clean, zero_shot=zero_shot)


def adapter_of(arm: Arm) -> Adapter:
    """What the arm trains, in the words of the theory."""
    from theory.ntk_attention.vit import Adapter

    kind = "none" if arm.kind == "head" else arm.kind
    return Adapter(kind, arm.size, "zeros" if arm.published else "softplus", arm.frozen)


def measure_digits(pack: Pack) -> pd.DataFrame:
    """Adapt the networks that the seeds pre-trained, all at once, and judge them on images nobody has seen."""
    import torch

    from theory.ensemble import stream
    from theory.ntk_attention.vit import Architecture, adapted, train

    arm, shape, count = ARMS[pack["arm"]], Architecture(), len(pack)
    adapter = adapter_of(arm)
    # A head alone costs little, and in double precision no prediction hangs on how a pack is rounded.
    dtype = torch.float32 if adapter.moves else torch.float64
    # One member by itself is multiplied, and rounded, by other routines than several: it is trained twice.
    own, rates = (pack.column(name) * (2 if count == 1 else 1) for name in ("seed", "lr"))
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for part in ("train", "validation", "test"):
        labelled = {}
        for seed in dict.fromkeys(own):
            x, y = digits(seed)[part]
            if arm.shuffled and part != "test":
                y = y[torch.randperm(len(y), generator=stream("prefix", "shuffled", seed, part))]
            labelled[seed] = x.to(dtype), y
        x, y = (torch.stack(each).to(pack.device) for each in zip(*(labelled[seed] for seed in own), strict=True))
        parts[part] = x, y
    weights = torch.cat([pretrained(seed) for seed in own]).to(pack.device, dtype)
    model = adapted(shape, adapter, weights, own)
    first_loss, _ = model.judged(*parts["train"])
    train(model, *parts["train"], pack["steps"], batch=BATCH, rates=torch.tensor(rates), data_seeds=own)
    train_loss, _ = model.judged(*parts["train"])
    accuracies = {part: model.judged(*parts[part])[1][:count] for part in ("validation", "test")}
    kappa = model.kappa
    largest = torch.zeros(count) if kappa is None else kappa.flatten(1).amax(1)[:count].cpu()
    size = arm.parameters(
        layers=shape.layers, heads=shape.heads, d=shape.head_dim, width=shape.d, weights=shape.weights
    )
    return pack.frame(
        first_loss=first_loss[:count],
        train_loss=train_loss[:count],
        **accuracies,
        parameters=torch.full((count,), size),
        largest_kappa=largest.double(),
    )


# --- Trials -----------------------------------------------------------------------------------------------------------

LR = Factor("lr", scaled((1e-2, 1e-1), RATES, LARGE_RATES), packed=True)


def measure_tuning(pack: Pack) -> pd.DataFrame:
    """Adapt pre-trained networks in one arm."""
    if pack["backbone"] == "digits":
        return measure_digits(pack)
    from studies.prefix import backbones

    return backbones.measure(pack)


def _seconds(cell: Mapping[str, Any]) -> float:
    if cell["backbone"] != "digits":
        return 1.0 * cell["steps"]
    arm = ARMS[cell["arm"]]
    moving = 0.0 if arm.kind == "head" or arm.frozen else 1.3e-3 + 1e-5 * (arm.size if arm.kind == "prefix" else 0)
    return 0.15 + cell["steps"] * (moving + 1e-4)


pretraining = Trial(
    "pretraining",
    (seeds(2, 10, 10),),
    (Table("pretraining", {"clean": float, "zero_shot": float}),),
    measure_pretraining,
    cost=lambda cell: 1.0,
    memory=lambda cell: 1e7,
)
"""Whether there is something to adapt: pre-training has succeeded, and what it has learnt does not solve the task."""

tuning = Trial(
    "tuning",
    (
        Factor("backbone", scaled(("digits",), ("digits",), ("vit", "language"))),
        Factor("arm", scaled(DIGIT_ARMS, DIGIT_ARMS, BACKBONE_ARMS)),
        Factor("steps", scaled((20,), (150, 600), (6000,))),
        seeds(2, 10, 3),  # before the rates, so that a pack cut from the grid has few seeds to pre-train
        LR,
    ),
    (
        Table(
            "tuning",
            dict.fromkeys(("first_loss", "train_loss", "validation", "test", "largest_kappa"), float)
            | {"parameters": int},
        ),
    ),
    measure_tuning,
    cost=_seconds,
    memory=lambda cell: 2e7 if cell["backbone"] == "digits" else 8e9,
    gpus={"cluster": 1.0},
    workers={"cluster": 4},
)

TRIALS = (pretraining, tuning)
