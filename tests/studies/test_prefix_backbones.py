from __future__ import annotations

import copy
import json
import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from assay import AssayError, Pack
from assay.plan import Cell
from studies.prefix import backbones
from studies.prefix.arms import ARMS
from theory.ntk_attention.models import adapt

transformers = pytest.importorskip("transformers")

HOMES = {"vit": ("ASSAY_VIT", "ASSAY_CIFAR100"), "language": ("ASSAY_LM", "ASSAY_BOOLQ")}
COLUMNS = {"first_loss", "train_loss", "validation", "test", "parameters", "largest_kappa"}
WORDS = ("is", "the", "sky", "blue", "green", "yes", "no", "grass", "Question:", "Answer:", "blue?", "green?")


def save_vit(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}))


def save_cifar(folder: Path, train: int = 60, test: int = 20) -> None:
    """Two classes out of a hundred: dark images and bright ones."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for name, count in (("train", train), ("test", test)):
        labels = np.arange(count, dtype=np.uint8) % 2 * 70 + 3
        pixels = draws.integers(0, 100, (count, 3072)) + (labels > 50)[:, None] * 150
        records = np.concatenate([labels[:, None] // 5, labels[:, None], pixels.astype(np.uint8)], 1)
        (folder / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())


def save_llama(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=8,
        vocab_size=14, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: index for index, word in enumerate(("[unk]", *WORDS))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[unk]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unk]").save_pretrained(folder)


def save_boolq(folder: Path, train: int = 40, validation: int = 12) -> None:
    """The passage says what the question asks, or something else."""
    folder.mkdir()
    for name, count in (("train", train), ("val", validation)):
        rows = []
        for index in range(count):
            colour = ("blue", "green")[index // 2 % 2]
            right = index % 2 == 0
            said = colour if right else {"blue": "green", "green": "blue"}[colour]
            passage = " ".join(["the grass"] * (index % 5) + [f"the sky is {said}"])
            rows.append({"question": f"is the sky {colour}", "passage": passage, "idx": index, "label": right})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    save_vit(folder / "ASSAY_VIT")
    save_cifar(folder / "ASSAY_CIFAR100")
    save_llama(folder / "ASSAY_LM")
    save_boolq(folder / "ASSAY_BOOLQ")
    return folder


@pytest.fixture(autouse=True)
def _folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in sum(HOMES.values(), ()):
        monkeypatch.setenv(variable, str(home / variable))
    monkeypatch.setattr(backbones, "BATCH", 16)


class Memory:
    """A team of one that keeps its state, and dies after some saves."""

    rank, size = 0, 1

    def __init__(self, lives: int = 1000) -> None:
        self.state: dict[str, Any] | None = None
        self.lives = lives

    def load(self) -> dict[str, Any] | None:
        return copy.deepcopy(self.state)

    def save(self, state: dict[str, Any]) -> None:
        self.state = copy.deepcopy(dict(state))
        self.lives -= 1
        if self.lives == 0:
            raise InterruptedError


def pack(backbone: str, arm: str, cells: list[tuple[int, float]], steps: int = 6, team: Any = None) -> Pack:
    made = [
        Cell(f"{seed}-{rate}", {"backbone": backbone, "arm": arm, "steps": steps, "seed": seed, "lr": rate})
        for seed, rate in cells
    ]
    found = Pack("prefix", "tuning", "cluster", tuple(made))
    return replace(found, team=team) if team else found


@pytest.mark.parametrize("backbone", HOMES)
@pytest.mark.parametrize(
    "arm", ["head", "full", "lora-4", "prefix-2", "ntk", "ntk-zeros", "ntk-frozen", "ntk-shuffled"]
)
def test_every_arm_trains_what_it_says(backbone: str, arm: str) -> None:
    """Parameters by the formula of the arms; the first loss is log(classes), for the head is zero at first."""
    (row,) = backbones.measure(pack(backbone, arm, [(0, 0.003)], steps=3)).to_dict("records")
    assert set(row) > COLUMNS
    classes, heads = (100, 2) if backbone == "vit" else (2, 2)
    d = 4 if backbone == "vit" else 2
    weights = sum(p.numel() for p in backbones.checkpoint(backbone, whole=True, device="cpu").parameters())
    if arm == "lora-4" and backbone == "language":  # the value map has two heads of four
        expected = 2 * 4 * ((8 + 8) + (8 + 4))
    else:
        expected = ARMS[arm].parameters(layers=2, heads=heads, d=d, width=8, weights=weights)
    assert row["parameters"] == expected
    assert row["first_loss"] == pytest.approx(math.log(classes), rel=1e-6)
    assert 0 <= row["validation"] <= 1
    assert 0 <= row["test"] <= 1
    assert abs(row["train_loss"] - row["first_loss"]) > 1e-5
    assert (row["largest_kappa"] > 0) == (arm in ("ntk", "ntk-shuffled"))


def test_bright_and_dark_images_are_told_apart_unless_labels_are_shuffled() -> None:
    found = {
        arm: backbones.measure(pack("vit", arm, [(0, 0.03)], steps=40)).iloc[0]
        for arm in ("head", "ntk", "ntk-shuffled")
    }
    assert found["ntk"]["test"] == found["head"]["test"] == found["ntk"]["validation"] == 1
    assert found["ntk-shuffled"]["train_loss"] > 0.5 > found["ntk"]["train_loss"]
    assert found["ntk"]["train_loss"] < found["head"]["train_loss"]


@pytest.mark.parametrize("backbone", HOMES)
def test_with_z_and_kappa_frozen_the_head_alone_is_trained_to_the_last_digit(backbone: str) -> None:
    head, frozen = (backbones.measure(pack(backbone, arm, [(0, 0.03)], steps=30)) for arm in ("head", "ntk-frozen"))
    pd.testing.assert_frame_equal(head, frozen, check_exact=True)


def test_what_fills_up_a_batch_of_questions_is_not_seen(home: Path) -> None:
    data = backbones.language(0)
    lengths = data.inputs("test", torch.arange(12))[1]
    assert len(lengths.unique()) > 3
    network = transformers.AutoModel.from_pretrained(home / "ASSAY_LM", local_files_only=True)
    adapt(network, "ntk")
    with torch.no_grad():
        arguments, read = data.inputs("test", torch.arange(12))
        together = network(**arguments).last_hidden_state[torch.arange(12), read]
        alone = [network(**data.inputs("test", torch.tensor([row]))[0]).last_hidden_state[0, -1] for row in range(12)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_a_language_model_learns_to_compare_question_and_passage() -> None:
    """Neither says the answer by itself, so the head alone learns nothing."""
    found = {arm: backbones.measure(pack("language", arm, [(0, 0.03)], steps=60)).iloc[0] for arm in ("head", "lora-4")}
    assert found["lora-4"]["test"] == found["lora-4"]["validation"] == 1
    assert found["lora-4"]["train_loss"] < 0.2 < 0.6 < found["head"]["train_loss"]


@pytest.mark.parametrize("backbone", HOMES)
def test_a_cell_alone_is_a_cell_in_its_pack(backbone: str) -> None:
    cells = [(0, 0.03), (1, 0.03), (1, 0.1)]
    together = backbones.measure(pack(backbone, "lora-4", cells)).set_index("cell")
    for cell in cells:
        alone = backbones.measure(pack(backbone, "lora-4", [cell])).set_index("cell")
        pd.testing.assert_frame_equal(together.loc[alone.index], alone)
    assert together["train_loss"].nunique() == 3


@pytest.mark.parametrize("arm", ["ntk", "full"])
def test_training_goes_on_from_what_the_team_saved(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the fourth save: two of the first cell and its row, one of the second."""
    monkeypatch.setattr(backbones, "SAVED", 3)
    cells = [(0, 0.03), (1, 0.1), (1, 0.03)]
    whole = backbones.measure(pack("vit", arm, cells, steps=8))
    team = Memory(lives=4)
    with pytest.raises(InterruptedError):
        backbones.measure(pack("vit", arm, cells, steps=8, team=team))
    assert team.state is not None
    assert (len(team.state["rows"]), team.state["progress"]["step"]) == (1, 3)
    resumed = backbones.measure(pack("vit", arm, cells, steps=8, team=team))
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def test_what_a_team_saves_can_be_loaded_as_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "SAVED", 3)
    team = Memory(lives=1)
    with pytest.raises(InterruptedError):
        backbones.measure(pack("language", "ntk", [(0, 0.03)], team=team))
    torch.save(team.state, tmp_path / "state.pt")
    team.state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = backbones.measure(pack("language", "ntk", [(0, 0.03)], team=team))
    pd.testing.assert_frame_equal(resumed, backbones.measure(pack("language", "ntk", [(0, 0.03)])), check_exact=True)


def test_two_processes_train_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that sum tensors as two processes do; each has half of every batch and of every set."""
    whole = backbones.measure(pack("vit", "ntk", [(0, 0.03)]))
    barrier, lock, given = threading.Barrier(2, timeout=60), threading.Lock(), [torch.empty(0)] * 2
    me = threading.local()
    load = backbones.checkpoint

    def all_reduce(tensor: torch.Tensor) -> None:
        given[me.rank] = tensor.clone()
        barrier.wait()
        total = given[0] + given[1]
        barrier.wait()
        tensor.copy_(total)

    def one_at_a_time(*arguments: Any, **options: Any) -> torch.nn.Module:
        with lock:
            return load(*arguments, **options)

    def member(rank: int) -> pd.DataFrame:
        me.rank, team = rank, Memory()
        team.rank, team.size = rank, 2
        return backbones.measure(pack("vit", "ntk", [(0, 0.03)], team=team))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(backbones, "checkpoint", one_at_a_time)
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(member, range(2)):
            pd.testing.assert_frame_equal(found, whole, rtol=1e-4)
    monkeypatch.setattr(backbones, "BATCH", 15)
    team = Memory()
    team.size = 2
    me.rank = 0
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    with pytest.raises(AssayError, match="a batch of 15 cannot be shared by 2 processes: use a divisor"):
        backbones.measure(pack("vit", "ntk", [(0, 0.03)], team=team))


def test_a_batch_in_parts_is_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = backbones.measure(pack("vit", "ntk", [(0, 0.03)]))
    monkeypatch.setitem(backbones.AT_A_TIME, "vit", 5)
    pd.testing.assert_frame_equal(backbones.measure(pack("vit", "ntk", [(0, 0.03)])), whole, rtol=1e-4)


def test_parts_are_drawn_by_the_seed_and_share_no_example() -> None:
    first, other = backbones._parts(50, 0), backbones._parts(50, 1)
    assert sorted([*first["train"].tolist(), *first["validation"].tolist()]) == list(range(50))
    assert len(first["validation"]) == 5
    assert not torch.equal(first["validation"], other["validation"])


def test_images_are_brought_to_the_size_and_range_of_the_checkpoint() -> None:
    data = backbones.vision(0)
    pixels = data.inputs("test", torch.tensor([0, 1]))[0]["pixel_values"]
    assert pixels.shape == (2, 3, 16, 16)
    raw = backbones._cifar100(backbones.data_folder("ASSAY_CIFAR100", ""))[0]["test"][:2].float() / 255
    means = raw.unflatten(-1, (16, 2)).unflatten(-3, (16, 2)).mean((-1, -3))
    # Halving by the bilinear kernel with antialiasing weighs a 4 x 4 neighbourhood: close to the mean of 2 x 2.
    torch.testing.assert_close(pixels.mean((-1, -2)) * 0.2 + 0.4, means.mean((-1, -2)), rtol=0.02, atol=0.01)


def test_questions_keep_their_end_and_lose_their_passage(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "ASSAY_LM", local_files_only=True)
    backbones._boolq.cache_clear()
    monkeypatch.setattr(backbones, "TOKENS", 8)
    given, last = backbones.language(0).inputs("test", torch.arange(5))
    backbones._boolq.cache_clear()
    for index, (ids, read) in enumerate(zip(given["input_ids"], last, strict=True)):
        words = tokenizer.decode(ids[: read + 1]).split()
        colour = ("blue", "green")[index // 2 % 2]
        assert words == [
            "the",
            "grass" if index % 5 else "sky",
            "Question:",
            "is",
            "the",
            "sky",
            f"{colour}?",
            "Answer:",
        ]


def copied(home: Path, to: Path, variable: str) -> Path:
    shutil.copytree(home / variable, to / variable)
    return to / variable


def test_folders_of_something_else_are_refused_in_one_line(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    def refused(backbone: str, variable: str, value: str | Path | None, message: str, error: type = AssayError) -> None:
        with monkeypatch.context() as context:
            context.delenv(variable) if value is None else context.setenv(variable, str(value))
            with pytest.raises(error, match=message) as caught:
                backbones.measure(pack(backbone, "ntk", [(0, 0.03)]))
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 600

    for backbone, (model, data) in HOMES.items():
        for variable in (model, data):
            refused(backbone, variable, None, f"set {variable}")
            refused(backbone, variable, tmp_path / "nowhere", f"{variable} = .*nowhere' is not a folder")
        refused(backbone, model, empty, f"{model} = .*empty' does not hold .* that can be read")
    refused("vit", "ASSAY_CIFAR100", empty, "no CIFAR-100 train files", FileNotFoundError)
    refused("language", "ASSAY_BOOLQ", empty, r"BoolQ file train\.jsonl is missing", FileNotFoundError)
    mixed = copied(home, tmp_path, "ASSAY_LM")
    (mixed / "config.json").write_text(json.dumps(json.loads((mixed / "config.json").read_text()) | {"image_size": 8}))
    refused("vit", "ASSAY_VIT", mixed, "holds a model of type 'llama', not a ViT checkpoint")
    config = transformers.BertConfig(
        vocab_size=14, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    refused(
        "language", "ASSAY_LM", tmp_path / "bert", "that can be read: there is neither a tokenizer nor a vocabulary"
    )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(home / "ASSAY_LM" / file, tmp_path / "bert" / file)
    refused(
        "language", "ASSAY_LM", tmp_path / "bert", "holds a model whose tokens see later ones, not a causal language"
    )
    fewer = copied(home, tmp_path / "fewer", "ASSAY_LM")
    (fewer / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 5}))
    refused("language", "ASSAY_LM", fewer, r"its tokenizer names token 1\d, but the model knows 5 tokens")
    cut = copied(home, tmp_path, "ASSAY_VIT")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("vit", "ASSAY_VIT", cut, "does not hold a ViT checkpoint that can be read")
    more = copied(home, tmp_path / "more", "ASSAY_VIT")
    (more / "config.json").write_text(
        json.dumps(json.loads((more / "config.json").read_text()) | {"num_hidden_layers": 3})
    )
    refused("vit", "ASSAY_VIT", more, r"it lacks 16 weights, such as .*2\.")


def test_pickled_weights_are_not_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(home, tmp_path, "ASSAY_VIT")
    weights = transformers.AutoModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    monkeypatch.setenv("ASSAY_VIT", str(folder))
    with pytest.raises(AssayError, match="does not hold a ViT checkpoint that can be read"):
        backbones.measure(pack("vit", "head", [(0, 0.03)]))
    assert transformers.AutoModel.from_pretrained(folder, use_safetensors=False) is not None  # it could have been
