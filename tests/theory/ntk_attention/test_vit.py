"""Stacked vision transformers: each member against a plain one written here, and what training may and may not move."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from theory.ensemble import batch_indices, schedule
from theory.ntk_attention.vit import (
    Adapter,
    Architecture,
    StackedViT,
    adapted,
    adapter_shapes,
    first_values,
    patches,
    train,
    weight_shapes,
)

SHAPE = Architecture(side=4, patch=2, d=12, heads=3, layers=2, hidden=10, classes=5)
ADAPTERS = {
    "none": Adapter("none"),
    "full": Adapter("full"),
    "lora": Adapter("lora", 3),
    "prefix": Adapter("prefix", 7),
    "ntk": Adapter("ntk"),
    "zeros": Adapter("ntk", start="zeros"),
    "frozen": Adapter("ntk", start="zeros", frozen=True),
}
SEEDS = (4, 9, 2)


def images(n=6, members=3, shape=SHAPE, seed=0):
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(members, n, shape.side**2, generator=dice, dtype=torch.float64)
    return x, torch.randint(shape.classes, (members, n), generator=dice)


def backbones(shape=SHAPE, seeds=SEEDS):
    """Weights and a head with nothing at zero."""
    start = first_values(shape, Adapter("full"), seeds).double()
    return start + 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def build(name, *, moved=True, shape=SHAPE, seeds=SEEDS):
    """A stack in double precision whose adapter is where it starts, or somewhere else."""
    model = adapted(shape, ADAPTERS[name], backbones(shape, seeds), seeds)
    if moved:
        dice = torch.Generator().manual_seed(2)
        model.trained.add_(0.3 * torch.randn(model.trained.shape, generator=dice, dtype=torch.float64))
    return model


def plain(model, k, trained, image):
    """Logits of member k for one image, token by token of what is declared, as a function of its row `trained`."""
    shape, adapter = model.shape, model.adapter
    head_size = (shape.d + 1) * shape.classes
    own = {}
    if adapter.kind == "full":
        row = trained[:-head_size]
    else:
        row, place = model.weights[k], 0
        layout = {} if adapter.frozen else adapter_shapes(shape, adapter)
        for name, (size, _, _) in layout.items():
            own[name] = trained[place : place + math.prod(size)].view(size)
            place += math.prod(size)
    w, place = {}, 0
    for name, (size, _) in weight_shapes(shape).items():
        w[name] = row[place : place + math.prod(size)].view(size)
        place += math.prod(size)
    head = trained[-head_size:]

    picture, p = image.view(shape.side, shape.side), shape.patch
    tokens = [w["positions"][0]]
    for i in range(0, shape.side, p):
        for j in range(0, shape.side, p):
            piece = picture[i : i + p, j : j + p].reshape(-1)
            tokens.append(F.linear(piece, w["embed"].T, w["embed_bias"][0]) + w["positions"][len(tokens)])
    x = torch.stack(tokens)
    e = shape.d // shape.heads
    for block in range(shape.layers):
        normed = F.layer_norm(x, (shape.d,))
        q, k_, v = (F.linear(normed, part.T) for part in w[f"{block}.qkv"].split(shape.d, 1))
        if adapter.kind == "lora":
            q = q + normed @ own[f"{block}.q_in"] @ own[f"{block}.q_out"]
            v = v + normed @ own[f"{block}.v_in"] @ own[f"{block}.v_out"]
        found = []
        for h in range(shape.heads):
            cut = slice(h * e, (h + 1) * e)
            qs, ks, vs = q[:, cut], k_[:, cut], v[:, cut]
            if adapter.kind == "prefix":
                ks = torch.cat([own[f"{block}.prefix_k"][h], ks])
                vs = torch.cat([own[f"{block}.prefix_v"][h], vs])
            if adapter.kind == "ntk" and not adapter.frozen:
                phi = torch.where(qs > 0, qs * e**-0.25 + 1, (qs * e**-0.25).exp())
                raw = own[f"{block}.kappa"][h]
                kappa = raw.abs() if adapter.start == "zeros" else (1 + raw.exp()).log()
                weights = (qs @ ks.T / e**0.5).exp()
                over = weights @ vs + phi @ own[f"{block}.Z"][h]
                found.append(over / (weights.sum(1) + phi @ kappa)[:, None])
            else:
                found.append(F.scaled_dot_product_attention(qs[None], ks[None], vs[None])[0])
        x = x + F.linear(torch.cat(found, 1), w[f"{block}.out"].T, w[f"{block}.out_bias"][0])
        up = F.linear(F.layer_norm(x, (shape.d,)), w[f"{block}.up"].T, w[f"{block}.up_bias"][0])
        x = x + F.linear(F.relu(up), w[f"{block}.down"].T, w[f"{block}.down_bias"][0])
    read = F.layer_norm(x[0], (shape.d,))
    return read @ head[: -shape.classes].view(shape.d, shape.classes) + head[-shape.classes :]


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_member_is_the_plain_network(name):
    model, (x, y) = build(name), images()
    logits = model.logits(model.features(x)).detach()
    for k in range(model.members):
        for i in range(x.shape[1]):
            torch.testing.assert_close(logits[k, i], plain(model, k, model.trained[k], x[k, i]), rtol=1e-11, atol=1e-11)
    loss, accuracy = model.judged(x, y)
    torch.testing.assert_close(loss, torch.stack([F.cross_entropy(logits[k], y[k]) for k in range(len(loss))]))
    torch.testing.assert_close(accuracy, (logits.argmax(-1) == y).double().mean(1))


@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_are_those_of_the_plain_network(name):
    model, (x, y) = build(name), images()
    losses, found = model.gradients(x if model.adapter.moves else model.features(x), y)
    for k in range(model.members):
        row = model.trained[k].clone().requires_grad_()
        loss = F.cross_entropy(torch.stack([plain(model, k, row, image) for image in x[k]]), y[k])
        torch.testing.assert_close(losses[k], loss.detach())
        torch.testing.assert_close(found[k], torch.autograd.grad(loss, row)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["lora", "prefix", "ntk"])
def test_gradients_are_finite_differences(name):
    model, (x, y) = build(name), images()
    _, found = model.gradients(x, y)
    step = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss(at):
        return StackedViT(SHAPE, model.adapter, model.weights, model.trained + at * step).judged(x, y)[0]

    h = 1e-5
    torch.testing.assert_close((loss(h) - loss(-h)) / (2 * h), (found * step).sum(1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["lora", "zeros", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_their_start_these_adapters_change_nothing(name, dtype):
    """Not within rounding, exactly; softplus and prefixes do change something from the start."""
    x = images()[0].to(dtype)
    base, start = backbones().to(dtype), {}
    for each in ("none", name, "ntk", "prefix"):
        start[each] = adapted(SHAPE, ADAPTERS[each], base, SEEDS).features(x)
    assert torch.equal(start[name], start["none"])
    changed = float((start["ntk"] - start["none"]).abs().max())
    assert 1e-3 < changed < 0.3
    assert float((start["prefix"] - start["none"]).abs().max()) > changed


def test_networks_begin_where_pre_training_ended():
    x, _ = images()
    base = backbones()
    whole = StackedViT(SHAPE, ADAPTERS["full"], None, base)
    logits = whole.logits(whole.features(x))
    for name in ("none", "full", "lora", "zeros"):
        model = adapted(SHAPE, ADAPTERS[name], base, SEEDS)
        torch.testing.assert_close(model.logits(model.features(x)), logits, rtol=1e-12, atol=1e-12)
    fresh = adapted(SHAPE, ADAPTERS["full"], base, SEEDS)
    fresh.trained.zero_()
    assert bool(base.any())


def test_low_rank_updates_can_be_merged_into_the_weights():
    model, (x, _) = build("lora"), images()
    merged = adapted(SHAPE, ADAPTERS["none"], backbones(), SEEDS)
    for block in range(SHAPE.layers):
        for side, start in (("q", 0), ("v", 2 * SHAPE.d)):
            change = model.named[f"{block}.{side}_in"] @ model.named[f"{block}.{side}_out"]
            merged.frozen[f"{block}.qkv"][:, :, start : start + SHAPE.d] += change.detach()
    torch.testing.assert_close(merged.features(x), model.features(x), rtol=1e-11, atol=1e-11)


def test_a_prefix_does_not_know_its_order_and_takes_weight_even_without_values():
    model, (x, _) = build("prefix"), images()
    before = model.features(x)
    for name, part in model.named.items():
        if "prefix" in name:
            part.data.copy_(part.data.flip(2))
    torch.testing.assert_close(model.features(x), before, rtol=1e-12, atol=1e-12)
    assert float((model.features(x.flip(2)) - before).abs().max()) > 1e-3  # the image's rows do know theirs
    none = adapted(SHAPE, ADAPTERS["none"], backbones(), SEEDS)
    model = build("prefix")
    for name, part in model.named.items():
        if "prefix_v" in name:
            part.data.zero_()
    assert float((model.features(x) - none.features(x)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ADAPTERS)
def test_training_moves_what_it_may_and_nothing_else(name):
    model, (x, y) = build(name, moved=False), images(20)
    base, start, first = backbones(), model.trained.clone(), model.judged(x, y)[0]
    train(model, x, y, 30, batch=5, rates=1e-2, data_seeds=SEEDS)
    assert bool((model.judged(x, y)[0] < first).all())
    if name != "full":
        assert torch.equal(model.weights, base[:, : SHAPE.weights])
    moved = (model.trained != start).view(model.members, -1).double().mean(1)
    if name == "zeros":  # kappa is all that cannot leave its start
        still = SHAPE.layers * SHAPE.heads * SHAPE.head_dim
        assert torch.equal((model.trained == start).sum(1), torch.full((model.members,), still))
        assert torch.equal(model.kappa, torch.zeros_like(model.kappa))
    else:
        assert float(moved.min()) > 0.9
    if name == "ntk":
        assert float(model.kappa.min()) > 0
        assert not torch.equal(model.kappa[0], model.kappa[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_z_and_kappa_frozen_the_head_trains_as_if_alone(dtype):
    x, y = images(20)
    ends = []
    for name in ("none", "frozen"):
        model = adapted(SHAPE, ADAPTERS[name], backbones().to(dtype), SEEDS)
        train(model, x.to(dtype), y, 30, batch=5, rates=3e-2, data_seeds=SEEDS)
        ends.append(model.trained)
    assert torch.equal(*ends)


def test_training_is_adam_on_the_declared_batches():
    """Against torch.optim.Adam on the plain network, one member."""
    steps, rate = 6, 3e-3
    model, (x, y) = build("lora", moved=False), images(10)
    row = model.trained[1].clone().requires_grad_()
    adam = torch.optim.Adam([row], lr=rate)
    for step, batch in enumerate(batch_indices(10, 4, steps, 9)):
        adam.param_groups[0]["lr"] = rate * schedule(step, steps)
        adam.zero_grad()
        F.cross_entropy(torch.stack([plain(model, 1, row, x[1, i]) for i in batch]), y[1, batch]).backward()
        adam.step()
    train(model, x, y, steps, batch=4, rates=torch.tensor([1e-2, rate, 1e-3], dtype=torch.float64), data_seeds=SEEDS)
    torch.testing.assert_close(model.trained[1], row.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_member_does_not_know_its_neighbours(name):
    """Alone, among three or in chunks: in double precision to the last digits that a product's route leaves."""
    x, y = images(12, 7)
    seeds = (4, 9, 2, 4, 7, 1, 0)
    rates = torch.tensor([1e-2, 3e-3, 1e-2, 1e-3, 1e-2, 2e-2, 1e-3])
    base = backbones(seeds=seeds)

    def run(rows, dtype=torch.float64):
        own = [seeds[i] for i in rows]
        model = adapted(SHAPE, ADAPTERS[name], base[rows].to(dtype), own)
        train(model, x[rows].to(dtype), y[rows], 12, batch=4, rates=rates[rows], data_seeds=own)
        return model.trained

    whole = run(list(range(7)))
    for rows in ([3], [5, 0], [6, 2, 4]):
        torch.testing.assert_close(run(rows), whole[rows], rtol=1e-10, atol=1e-12)
    single = run(list(range(7)), torch.float32)
    torch.testing.assert_close(run([5, 0], torch.float32), single[[5, 0]], rtol=1e-4, atol=1e-5)


def test_chunks_of_members_and_images_change_nothing(monkeypatch):
    import theory.ntk_attention.vit as vit

    x, y = images(12, 7)
    seeds = range(7)

    def run():
        model = adapted(SHAPE, ADAPTERS["ntk"], backbones(seeds=seeds), seeds)
        train(model, x, y, 5, batch=4, rates=1e-2, data_seeds=seeds)
        return torch.cat([model.features(x).flatten(), model.trained.flatten()])

    whole = run()
    monkeypatch.setattr(vit, "CACHE_BYTES", 1)
    monkeypatch.setattr(vit, "AT_A_TIME", 5)
    torch.testing.assert_close(run(), whole, rtol=1e-10, atol=1e-12)


def test_first_values_depend_on_the_seed_alone():
    for adapter in ADAPTERS.values():
        rows = first_values(SHAPE, adapter, [3, 5])
        assert torch.equal(first_values(SHAPE, adapter, [5])[0], rows[1])
        if adapter.kind in ("full", "lora", "prefix"):
            assert not torch.equal(rows[0], rows[1])
    for name, (size, std) in weight_shapes(Architecture(d=64, heads=4, hidden=128)).items():
        assert (std == 0) == name.endswith("bias"), (name, size)


def test_patches_are_cut_in_rows():
    picture = torch.arange(16.0)
    assert patches(picture, SHAPE).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="patch = 3 must divide side = 8"):
        Architecture(patch=3)
    with pytest.raises(ValueError, match="heads = 5 must divide d = 32"):
        Architecture(heads=5)
    with pytest.raises(ValueError, match="at least 1"):
        Architecture(layers=0)
    with pytest.raises(ValueError, match="size = 0 of 'lora'"):
        Adapter("lora")
    with pytest.raises(ValueError, match="size = 3 of 'ntk'"):
        Adapter("ntk", 3)
    with pytest.raises(ValueError, match="only 'ntk' from zeros can be frozen, got 'ntk' from 'softplus'"):
        Adapter("ntk", frozen=True)
    base = backbones()
    with pytest.raises(ValueError, match=r"weights must be \[K, W\] = \[3, \d+\], got None"):
        StackedViT(SHAPE, ADAPTERS["none"], None, base[:, -65:])
    with pytest.raises(ValueError, match=r"trained must be \[K, P\]"):
        StackedViT(SHAPE, ADAPTERS["none"], base[:, :-65], base)
    with pytest.raises(ValueError, match="pass None"):
        StackedViT(SHAPE, ADAPTERS["full"], base[:, :-65], base)
    with pytest.raises(ValueError, match="at least one member"):
        first_values(SHAPE, ADAPTERS["lora"], [])
    with pytest.raises(ValueError, match="3 pre-trained networks need as many seeds, got 2"):
        adapted(SHAPE, ADAPTERS["lora"], base, [0, 1])
