"""Fine-tuning of pre-trained models from the user's disk, arm by arm: a ViT on CIFAR-100, a language model on BoolQ.

Four folders are read, never the network, and weights as safetensors only:
    ASSAY_VIT       a ViT checkpoint of the transformers library        ASSAY_CIFAR100  CIFAR-100 (see theory.datasets)
    ASSAY_LM        a causal language model with its tokenizer          ASSAY_BOOLQ     BoolQ (see theory.datasets_text)

A linear head, of zeros at first, reads the class token of an image or the last token of a question. Networks run without
dropout; everything random depends on the seed alone. Several processes share every batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import AssayError, Pack, data_folder
from studies.prefix.arms import ARMS, Arm

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from assay.team import Team

BATCH = 256
SAVED = 500
"""Steps between two checkpoints, where training can be taken up again."""
HELD_OUT = 0.1
"""Part of the training set that learning rates are selected on."""
TOKENS = 512
"""Most tokens of a question with its passage, which loses its end."""
AT_A_TIME = {"vit": 64, "language": 8}
"""Examples that go through a network at once: a batch is the sum of such parts."""
SOURCES = {
    "vit": ("ASSAY_VIT", "a ViT checkpoint", "pixel_values"),
    "language": ("ASSAY_LM", "a causal language model with its tokenizer", "input_ids"),
}
"""By backbone: the variable that names the folder, what it holds, and what the model takes."""


@dataclass(frozen=True)
class Examples:
    """What a network can be shown: labels of the parts "train", "validation" and "test", and its inputs.

    `inputs(part, rows)` are the arguments of the model for n rows of a part, and which of its tokens the head reads, [n].
    """

    classes: int
    labels: Mapping[str, torch.Tensor]
    inputs: Callable[[str, torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]


def measure(pack: Pack) -> pd.DataFrame:
    """Adapt a pre-trained model once for every cell, one after another, and judge it on the test set."""
    import torch

    arm, backbone, team = ARMS[pack["arm"]], pack["backbone"], pack.team
    state = team.load() or {"rows": []}
    rows = [list(row) for row in state["rows"]]
    members = list(zip(pack.column("seed"), pack.column("lr"), strict=True))
    for seed, rate in members[len(rows) :]:
        done = list(rows)

        def keep(progress: dict[str, Any], done: Sequence[Sequence[float]] = done) -> None:
            team.save({"rows": done, "progress": progress})

        progress = state.pop("progress", None)
        rows.append(tuned(backbone, arm, seed, rate, pack["steps"], pack.device, team, progress, keep))
        team.save({"rows": rows})
    columns = ("first_loss", "train_loss", "validation", "test", "parameters", "largest_kappa")
    found = dict(zip(columns, torch.tensor(rows, dtype=torch.float64).T, strict=True))
    return pack.frame(**found | {"parameters": found["parameters"].long()})


def tuned(
    backbone: str,
    arm: Arm,
    seed: int,
    rate: float,
    steps: int,
    device: str,
    team: Team,
    state: Mapping[str, Any] | None,
    keep: Callable[[dict[str, Any]], None],
) -> list[float]:
    """Train one arm by AdamW and return its losses, accuracies, number of parameters beside the head and largest kappa.

    Goes on from `state`, and hands the state to `keep` after every `SAVED` steps.
    """
    import torch
    import torch.nn.functional as F

    from theory.ensemble import batch_indices, schedule, stream
    from theory.ntk_attention.models import adapt, largest_kappa

    data = vision(seed) if backbone == "vit" else language(seed)
    labels = dict(data.labels)
    if arm.shuffled:
        for part in ("train", "validation"):
            order = torch.randperm(len(labels[part]), generator=stream("backbones", "shuffled", seed, part))
            labels[part] = labels[part][order]
    network: Any = checkpoint(backbone, whole=arm.kind == "full", device=device)
    own = adapt(network, arm.kind, arm.size, seed=seed, positive="abs" if arm.published else "softplus")
    if arm.frozen:
        network.requires_grad_(False)
        own = {}
    network.to(device).eval()
    head = torch.nn.Linear(network.config.hidden_size, data.classes, device=device)
    trained = [*own.values(), *head.parameters()]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()

    def features(part: str, rows: torch.Tensor) -> torch.Tensor:
        arguments, read = data.inputs(part, rows)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            hidden = network(**{name: value.to(device) for name, value in arguments.items()}).last_hidden_state
        return hidden[torch.arange(len(rows), device=device), read.to(device)].float()

    fixed: dict[str, torch.Tensor] = {}

    def logits(part: str, rows: torch.Tensor) -> torch.Tensor:
        if own:
            return head(features(part, rows))
        if part not in fixed:  # nothing before the head moves: once is enough
            with torch.no_grad():
                every = torch.arange(len(labels[part])).split(AT_A_TIME[backbone])
                fixed[part] = torch.cat([features(part, some) for some in every])
        return head(fixed[part][rows.to(device)])

    def judged(part: str) -> tuple[float, float]:
        found = torch.zeros(2, dtype=torch.float64, device=device)
        with torch.no_grad():
            for rows in torch.arange(len(labels[part]))[team.rank :: team.size].split(AT_A_TIME[backbone]):
                y, guess = labels[part][rows].to(device), logits(part, rows)
                found[0] += F.cross_entropy(guess, y, reduction="sum")
                found[1] += (guess.argmax(-1) == y).sum()
        if team.size > 1:
            torch.distributed.all_reduce(found)
        loss, right = (found / len(labels[part])).tolist()
        return loss, right

    adam = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    batch = min(BATCH, len(labels["train"]))
    if batch % team.size:
        raise AssayError(f"a batch of {batch} cannot be shared by {team.size} processes: use a divisor")
    start, first_loss = 0, 0.0
    if state is None:
        first_loss, _ = judged("train")
    else:
        start, first_loss = int(state["step"]), float(state["first_loss"])
        adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for parameter, kept in zip(trained, state["trained"], strict=True):
                parameter.copy_(kept)
    order = batch_indices(len(labels["train"]), batch, steps, seed)
    for step in range(start, steps):
        for group in adam.param_groups:
            group["lr"] = rate * schedule(step, steps)
        adam.zero_grad()
        for rows in order[step, team.rank :: team.size].split(AT_A_TIME[backbone]):
            loss = F.cross_entropy(logits("train", rows), labels["train"][rows].to(device), reduction="sum") / batch
            loss.backward()
        if team.size > 1:
            for parameter in trained:
                if parameter.grad is not None:  # or in no process: the model never reads it
                    torch.distributed.all_reduce(parameter.grad)
        adam.step()
        if (step + 1) % SAVED == 0 and step + 1 < steps:
            kept = [parameter.detach() for parameter in trained]
            keep({"step": step + 1, "first_loss": first_loss, "trained": kept, "adam": adam.state_dict()})
    train_loss, _ = judged("train")
    accuracies = [judged(part)[1] for part in ("validation", "test")]
    return [first_loss, train_loss, *accuracies, sum(p.numel() for p in own.values()), largest_kappa(network)]


def checkpoint(backbone: str, *, whole: bool, device: str) -> torch.nn.Module:
    """Load the model without its head; AssayError, in one line, for a folder that holds no such checkpoint.

    Language models that stay frozen are held in bfloat16 on a GPU, all others in float32.
    """
    import torch

    from theory.ntk_attention.models import transformers_library

    variable, what, takes = SOURCES[backbone]
    folder, library = data_folder(variable, what), transformers_library()
    half = backbone == "language" and device == "cuda" and not whole
    with _quiet(library):
        try:
            model, found = library.AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.bfloat16 if half else torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # a damaged or foreign folder can raise nearly anything
            raise _unreadable(variable, folder, what, error) from error
    if model.main_input_name != takes:
        raise AssayError(f"{variable} = {str(folder)!r} holds a model of type {model.config.model_type!r}, not {what}")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # the head reads the token itself
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:  # the library would go on with random numbers
        raise _unreadable(variable, folder, what, ValueError(f"it lacks {len(missing)} weights, such as {missing[0]}"))
    if backbone == "language":
        model.config.use_cache = False
        with torch.no_grad():
            first = model(input_ids=torch.tensor([[0, 0], [0, 1]])).last_hidden_state[:, 0]
        if not torch.allclose(first[0], first[1]):
            raise AssayError(f"{variable} = {str(folder)!r} holds a model whose tokens see later ones, not {what}")
    return model


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep the library from telling that the checkpoint's own head is not used, and from drawing progress bars."""
    said, drew = library.logging.get_verbosity(), library.logging.is_progress_bar_enabled()
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    try:
        yield
    finally:
        library.logging.set_verbosity(said)
        if drew:
            library.logging.enable_progress_bar()


def _unreadable(variable: str, folder: Path, what: str, error: Exception) -> AssayError:
    said = " ".join(str(error).split())[:200]  # messages run over many lines
    return AssayError(f"{variable} = {str(folder)!r} does not hold {what} that can be read: {said}")


def _parts(known: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of the training set that are trained on and that are held out, drawn by the seed."""
    import torch

    from theory.ensemble import stream

    order = torch.randperm(known, generator=stream("backbones", "held out", seed, known))
    held = max(1, round(HELD_OUT * known))
    return {"train": order[held:], "validation": order[:held]}


def vision(seed: int) -> Examples:
    """CIFAR-100, brought to the size and the range of pixels that the checkpoint was trained with."""
    import torch
    import torch.nn.functional as F

    folder = data_folder("ASSAY_VIT", "a ViT checkpoint")
    side, mean, std = _preprocessing(folder)
    images, labels = _cifar100(data_folder("ASSAY_CIFAR100", "CIFAR-100"))
    rows_of = _parts(len(labels["train"]), seed)

    def inputs(part: str, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        raw = images["test"][rows] if part == "test" else images["train"][rows_of[part][rows]]
        pixels = F.interpolate(raw.float() / 255, size=(side, side), mode="bilinear", antialias=True)
        return {"pixel_values": (pixels - mean) / std}, torch.zeros_like(rows)

    known = {part: labels["train"][rows] for part, rows in rows_of.items()}
    return Examples(100, known | {"test": labels["test"]}, inputs)


@lru_cache(maxsize=1)
def _cifar100(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    import torch

    from theory.datasets import cifar100

    held = {split: cifar100(folder, split) for split in ("train", "test")}
    images = {split: torch.tensor(each.images) for split, each in held.items()}
    return images, {split: torch.tensor(each.labels) for split, each in held.items()}


def _preprocessing(folder: Path) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Side of the images, and mean and deviation per channel [3, 1, 1], from the files beside the weights."""
    import torch

    found: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # what ViT's processor takes by default
    try:
        side = json.loads((folder / "config.json").read_text())["image_size"]
        if (folder / "preprocessor_config.json").is_file():
            found |= json.loads((folder / "preprocessor_config.json").read_text())
        mean, std = (torch.tensor(found[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        return int(side), mean, std
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _unreadable("ASSAY_VIT", folder, "a ViT checkpoint", error) from error


def language(seed: int) -> Examples:
    """BoolQ in tokens: passage, question, and the word that the answer would follow."""
    import torch

    variable, what, _ = SOURCES["language"]
    tokens, labels = _boolq(data_folder(variable, what), data_folder("ASSAY_BOOLQ", "BoolQ"))
    rows_of = _parts(len(labels["train"]), seed)

    def inputs(part: str, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        split, rows = ("test", rows) if part == "test" else ("train", rows_of[part][rows])
        own = [tokens[split][row] for row in rows.tolist()]
        # What is filled up on the right needs no mask: a causal model's last token sees nothing of it.
        ids = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
        return {"input_ids": ids}, torch.tensor([len(each) - 1 for each in own])

    known = {part: labels["train"][rows] for part, rows in rows_of.items()}
    return Examples(2, known | {"test": labels["test"]}, inputs)


@lru_cache(maxsize=1)
def _boolq(model: Path, folder: Path) -> tuple[dict[str, list[torch.Tensor]], dict[str, torch.Tensor]]:
    """Tokens of every question and its label, by split; "test" is the validation split: no other labels are public."""
    import torch

    from theory.datasets_text import boolq
    from theory.ntk_attention.models import transformers_library

    variable, what, _ = SOURCES["language"]
    library = transformers_library()
    try:
        if not any(path for name in ("tokenizer.*", "vocab.*") for path in model.glob(name)):
            raise ValueError(
                "there is neither a tokenizer nor a vocabulary"
            )  # the library would go on with an empty one
        tokenizer = library.AutoTokenizer.from_pretrained(model, local_files_only=True)
        known = library.AutoConfig.from_pretrained(model, local_files_only=True).vocab_size
    except Exception as error:  # as above
        raise _unreadable(variable, model, what, error) from error
    tokens, labels = {}, {}
    for split, name in (("train", "train"), ("test", "validation")):
        held = boolq(folder, name)
        asked = [f"\nQuestion: {question}?\nAnswer:" for question in held.questions]
        ends = tokenizer(asked, add_special_tokens=False)["input_ids"]
        starts = tokenizer(list(held.passages))["input_ids"]
        tokens[split] = [
            torch.tensor((start[: max(0, TOKENS - len(end))] + end)[-TOKENS:])
            for start, end in zip(starts, ends, strict=True)
        ]
        largest = max(int(each.max()) for each in tokens[split])
        if largest >= known:
            fault = ValueError(f"its tokenizer names token {largest}, but the model knows {known} tokens")
            raise _unreadable(variable, model, what, fault)
        labels[split] = torch.tensor(held.labels).long()
    return tokens, labels
