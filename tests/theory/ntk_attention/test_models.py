from __future__ import annotations

import builtins
import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from theory.ensemble import normal
from theory.ntk_attention.attention import fold
from theory.ntk_attention.features import Taylor
from theory.ntk_attention.layer import FoldedPrefix
from theory.ntk_attention.models import LowRank, TrainedPrefix, adapt, largest_kappa

transformers = pytest.importorskip("transformers")
sdpa_mask = pytest.importorskip("transformers.masking_utils").sdpa_mask

D, LAYERS, L = 16, 2, 7
IDS = torch.arange(3 * L).reshape(3, L) * 7 % 50
PADDED = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])
IMAGES = normal((3, 3, 8, 8), "images", dtype=torch.float32)


def vit(**options) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=4, initializer_range=0.3, **options,
    )  # fmt: skip
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


def llama(**options) -> nn.Module:
    """Four query heads, two key-value heads, each of dimension 4."""
    torch.manual_seed(0)
    sizes = {"hidden_size": D, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 16}
    config = transformers.LlamaConfig(num_hidden_layers=LAYERS, vocab_size=50, initializer_range=0.3, **sizes | options)
    return transformers.LlamaModel(config).eval()


def bert(**options) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=16, vocab_size=50, **options
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def seen(model: nn.Module, **inputs: Tensor) -> Tensor:
    """The last hidden states, zero at padding."""
    hidden = model(**inputs).last_hidden_state
    return hidden * inputs["attention_mask"].unsqueeze(-1) if "attention_mask" in inputs else hidden


MODELS: dict[str, tuple[Callable[..., nn.Module], dict[str, Tensor]]] = {
    "vit": (vit, {"pixel_values": IMAGES}),
    "llama": (llama, {"input_ids": IDS}),
    "llama padded": (llama, {"input_ids": IDS, "attention_mask": PADDED}),
    "bert padded": (bert, {"input_ids": IDS, "attention_mask": PADDED}),
}
every_model = pytest.mark.parametrize(("make", "inputs"), MODELS.values(), ids=MODELS)


def adapters(model: nn.Module) -> list[FoldedPrefix]:
    return [m for m in model.modules() if isinstance(m, FoldedPrefix)]


@every_model
@pytest.mark.parametrize(
    ("kind", "size", "options"),
    [
        ("head", 0, {}),
        ("full", 0, {}),
        ("lora", 3, {}),
        ("ntk", 0, {"positive": "abs"}),
        ("ntk", 0, {"start": -30.0}),
        ("ntk", 0, {"positive": "free", "phi": lambda d: Taylor(d, 2)}),
    ],
)
def test_the_start_is_the_model_as_it_was(make, inputs, kind: str, size: int, options: dict) -> None:
    plain = seen(make(), **inputs)
    model = make()
    adapt(model, kind, size, **options)
    torch.testing.assert_close(seen(model, **inputs), plain, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", ["lora", "ntk"])
def test_the_logits_at_the_start_are_the_models_own(kind: str) -> None:
    for whole, inputs in (
        (transformers.LlamaForCausalLM(llama().config).eval(), {"input_ids": IDS, "attention_mask": PADDED}),
        (transformers.ViTForImageClassification(vit().config).eval(), {"pixel_values": IMAGES}),
    ):
        plain = whole(**inputs).logits
        adapt(whole, kind, 2, start=-30.0)
        rows = inputs.get("attention_mask", torch.ones(3, 1)).bool()
        at = rows if plain.dim() == 3 else slice(None)
        torch.testing.assert_close(whole(**inputs).logits[at], plain[at], rtol=1e-4, atol=2e-6)


@every_model
def test_what_is_trained_and_how_many_numbers_it_has(make, inputs) -> None:
    """Per layer: 2 r (d_in + d_out) of "lora", 2 m H d of "prefix", H (d² + d) of "ntk" with H key-value heads."""
    H, d = (2, 8) if make is vit else (2, 4) if make is llama else (4, 4)
    full = sum(p.numel() for p in make().parameters())
    lora = 3 * (D + D) + 3 * (D + H * d)
    for kind, size, count in (
        ("head", 0, 0),
        ("full", 0, full),
        ("lora", 3, LAYERS * lora),
        ("prefix", 5, LAYERS * 2 * 5 * H * d),
        ("ntk", 0, LAYERS * H * (d * d + d)),
    ):
        model = make()
        before = copy.deepcopy(model.state_dict())
        own = adapt(model, kind, size)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == set(own)
        assert sum(p.numel() for p in own.values()) == count
        if own:
            (seen(model, **inputs) * 0.1).exp().sum().backward()
        for name, p in model.named_parameters():
            assert name in own or p.grad is None
        if kind in ("prefix", "ntk"):
            assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in own.values())
            optimiser = torch.optim.SGD(own.values(), lr=0.1)
            optimiser.step()
            after = model.state_dict()
            assert all(torch.equal(after[name], value) for name, value in before.items())


def reference(model: nn.Module, prefixes: list[tuple[Tensor, Tensor]], causal: bool) -> nn.Module:
    """The model with exact prefix attention written out: softmax over [K_P; K], queries of a group share keys."""
    layers = [m for m in model.modules() if hasattr(m, "k_proj") or hasattr(m, "key")]
    numbers = {id(layer): index for index, layer in enumerate(layers)}

    def attend(layer, query, key, value, attention_mask, scaling=None, **_):
        K, V = prefixes[numbers[id(layer)]]
        B, H, S, d = query.shape
        keys, values = (
            torch.cat([P.expand(B, -1, -1, -1), x], 2).repeat_interleave(H // key.shape[1], 1)
            for P, x in ((K, key), (V, value))
        )
        t = query @ keys.mT / math.sqrt(d)
        hidden = torch.zeros(1, 1, S, S, dtype=torch.bool)
        if causal:
            hidden = hidden | torch.ones(S, S, dtype=torch.bool).triu(1)
        if attention_mask is not None:
            hidden = hidden | ~attention_mask
        t[..., K.shape[1] :] = t[..., K.shape[1] :].masked_fill(hidden, -math.inf)
        return (torch.softmax(t, -1) @ values).transpose(1, 2), None

    transformers.AttentionInterface.register("test_reference", attend)
    transformers.AttentionMaskInterface.register("test_reference", sdpa_mask)
    model.set_attn_implementation("test_reference")
    return model


@every_model
def test_a_prefix_is_in_front_of_every_token_whatever_the_mask(make, inputs) -> None:
    model = make()
    adapt(model, "prefix", 5, seed=3)
    prefixes = [(m.K.detach(), m.V.detach()) for m in model.modules() if isinstance(m, TrainedPrefix)]
    assert len(prefixes) == LAYERS
    exact = reference(make(), prefixes, causal=make is llama)
    torch.testing.assert_close(seen(model, **inputs), seen(exact, **inputs), rtol=1e-4, atol=1e-5)
    plain = seen(make(), **inputs)
    assert float((plain - seen(model, **inputs)).detach().abs().max()) > 1e-3


@every_model
def test_folded_by_a_map_of_high_degree_a_prefix_is_itself(make, inputs) -> None:
    model = make()
    adapt(model, "ntk", phi=lambda d: Taylor(d, 8), positive="free")
    prefixes = []
    for index, adapter in enumerate(adapters(model)):
        H, d = adapter.Z.shape[0], adapter.Z.shape[-1]
        K, V = (scale * normal((H, 6, d), name, index, dtype=torch.float32) for scale, name in ((0.3, "K"), (1.0, "V")))
        prefixes.append((K, V))
        adapter.assign(fold(adapter.phi, K, V))
    exact, plain = seen(reference(make(), prefixes, causal=make is llama), **inputs), seen(make(), **inputs)
    torch.testing.assert_close(seen(model, **inputs), exact, rtol=1e-3, atol=1e-4)
    assert float((plain - exact).detach().abs().max()) > 0.02


def test_later_tokens_stay_unseen_behind_a_prefix() -> None:
    for kind in ("prefix", "ntk"):
        model = llama()
        adapt(model, kind, 4)
        changed = IDS.clone()
        changed[:, 5:] += 1
        a, b = seen(model, input_ids=IDS), seen(model, input_ids=changed)
        torch.testing.assert_close(a[:, :5], b[:, :5], rtol=0, atol=1e-6)
        assert float((a[:, 5:] - b[:, 5:]).detach().abs().min()) > 0


@pytest.mark.parametrize("kind", ["prefix", "ntk"])
def test_generation_with_a_cache_goes_on_as_without_one(kind: str) -> None:
    model = llama()
    adapt(model, kind, 4)
    whole = model(input_ids=IDS).last_hidden_state
    with torch.no_grad():
        first = model(input_ids=IDS[:, :4], use_cache=True)
        cache = first.past_key_values
        rest = [model(input_ids=IDS[:, t : t + 1], past_key_values=cache).last_hidden_state for t in range(4, L)]
    torch.testing.assert_close(torch.cat([first.last_hidden_state, *rest], 1), whole.detach(), rtol=1e-4, atol=1e-5)


def test_low_rank_updates_are_what_they_say() -> None:
    """The model with W + B A in place of W, in the query and value maps of every layer."""
    model, other = llama(), llama()
    adapt(model, "lora", 2)
    for layer, plain in zip(model.layers, other.layers, strict=True):
        for name in ("q_proj", "v_proj"):
            update, base = getattr(layer.self_attn, name), getattr(plain.self_attn, name)
            assert isinstance(update, LowRank)
            with torch.no_grad():
                update.B.copy_(normal(update.B.shape, "B"))
                base.weight += update.B @ update.A
        assert isinstance(layer.self_attn.k_proj, nn.Linear)
    torch.testing.assert_close(seen(model, input_ids=IDS), seen(other, input_ids=IDS), rtol=1e-4, atol=1e-5)


def test_what_is_drawn_depends_on_the_seed_and_differs_between_layers() -> None:
    def drawn(kind: str, seed: int) -> list[Tensor]:
        return [p for p in adapt(vit(), kind, 4, seed=seed).values() if float(p.detach().abs().max()) > 0]

    for kind, count in (("prefix", 2 * LAYERS), ("lora", 2 * LAYERS)):
        first, again, other = drawn(kind, 0), drawn(kind, 0), drawn(kind, 1)
        assert len(first) == count
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])


def test_kappa_is_positive_and_its_largest_entry_known() -> None:
    model = vit()
    assert largest_kappa(model) == 0
    adapt(model, "ntk")
    assert largest_kappa(model) == pytest.approx(math.log1p(math.exp(-4)))
    with torch.no_grad():
        for p in adapters(model):
            p.raw.copy_(normal(p.raw.shape, "raw") * 20)
    kappas = torch.stack([m.kappa.detach() for m in adapters(model)])
    assert float(kappas.min()) > 0
    assert largest_kappa(model) == float(kappas.max()) > 1


@pytest.mark.parametrize("make", [vit, llama])
@pytest.mark.parametrize("kind", ["ntk", "prefix", "lora"])
def test_half_precision_under_large_logits(make, kind: str) -> None:
    inputs = {"pixel_values": IMAGES} if make is vit else {"input_ids": IDS}
    model = make()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ("q_proj" in name or "k_proj" in name) and "weight" in name:
                p *= 12  # logits beyond those whose exponentials float16 and float32 can hold
    model = model.to(torch.bfloat16)
    own = adapt(model, kind, 3)
    assert {p.dtype for p in own.values()} == {torch.float32}
    inputs = {name: x.to(torch.bfloat16) if x.is_floating_point() else x for name, x in inputs.items()}
    for dtype in (torch.bfloat16, torch.float16):
        out = model.to(dtype)(**{n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()})
        assert out.last_hidden_state.isfinite().all()
        model.zero_grad()
        (out.last_hidden_state.float() * 0.01).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in own.values())


def test_dropout_of_features_is_off_at_evaluation() -> None:
    model, without = vit(), vit()
    adapt(model, "ntk", dropout=0.9)
    adapt(without, "ntk")
    assert torch.equal(seen(model, pixel_values=IMAGES), seen(without, pixel_values=IMAGES))
    model.train()
    assert not torch.equal(seen(model, pixel_values=IMAGES), seen(without, pixel_values=IMAGES))


def test_a_state_is_taken_up_by_a_fresh_model(tmp_path) -> None:
    model, other = llama(), llama()
    own = adapt(model, "ntk")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(normal(p.shape, name))
    torch.save(own, tmp_path / "own.pt")
    adapt(other, "ntk")
    kept = torch.load(tmp_path / "own.pt", weights_only=True)
    other.load_state_dict(kept, strict=False)
    assert set(kept) <= set(other.state_dict())
    assert torch.equal(seen(model, input_ids=IDS), seen(other, input_ids=IDS))


def test_other_models_of_the_library_go_on_as_before() -> None:
    plain, other = vit(), vit()
    before = seen(plain, pixel_values=IMAGES)
    adapt(other, "ntk")
    assert torch.equal(seen(plain, pixel_values=IMAGES), before)
    layer = next(m for m in other.modules() if hasattr(m, "adapter"))
    del layer.adapter  # a layer without one is served by the library's own function
    assert seen(other, pixel_values=IMAGES).isfinite().all()


def test_misuse_is_refused(monkeypatch) -> None:
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(4, 4) for _ in range(3))

    twice = vit()
    adapt(twice, "lora", 2)
    for message, call in (
        ("kind = 'ntq': choose 'head', 'full', 'lora', 'prefix' or 'ntk'", lambda: adapt(vit(), "ntq")),
        ("a prefix needs at least one row, got size = 0", lambda: adapt(vit(), "prefix")),
        ("rank of at least 1, got size = 0", lambda: adapt(vit(), "lora")),
        ("has adapters already: load it again", lambda: adapt(twice, "ntk")),
        (r"GPT2Model has no attention layers with linear query and value maps \(q_proj/v_proj", lambda: adapt(gpt2, "ntk")),
        ("Layer has no attention whose function can be chosen", lambda: adapt(Layer(), "ntk")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    model = llama(attention_dropout=0.1)
    adapt(model, "ntk")
    assert model(input_ids=IDS).last_hidden_state.isfinite().all()
    with pytest.raises(ValueError, match=r"LlamaAttention uses attention dropout of 0\.1, which an adapted layer"):
        model.train()(input_ids=IDS)
    with pytest.raises(ValueError, match="uses the attention option 'softcap'"):
        model.eval()(input_ids=IDS, softcap=30.0)

    real = builtins.__import__

    def without(name: str, *arguments, **options):
        if name.partition(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ImportError, match=r"pre-trained models need the transformers library: pip install 'assay\[models\]'"
    ):
        adapt(Layer(), "ntk")
