"""Training of stacked GPTs against the same networks as eager modules and against GPT-2 of the transformers library.

Everybody starts from the same numbers, sees the same batches and runs on one thread in float32. The library is
imported here only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theory.ensemble import schedule, stream
from theory.icl.gpt import StackedGPT, gaussian_gpt
from theory.icl.layouts import Architecture, tokens
from theory.icl.pretraining import train_gpt

K, PEERS, RATE, ROUNDS = 16, 2, 1e-3, 6
SIZES = ((16, 8, 16, 40), (16, 32, 16, 15), (64, 8, 64, 6))
"""Width, batch, tokens per sequence, and timed steps."""
RIVALS = (("symbols", "eager"), ("symbols", "fused"), ("reals", "GPT-2"))


class Eager(nn.Module):
    """One member of a stack as a plain module."""

    def __init__(self, model: StackedGPT, member: int) -> None:
        super().__init__()
        self.shape = model.shape
        w = {name: values[member].detach().clone() for name, values in model.named.items()}
        self.table, self.positions = nn.Parameter(w["table"]), nn.Parameter(w["positions"])
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: linear(w, f"{block}.{name}") for name in ("qkv", "out", "up", "down")})
            for block in range(1, model.shape.L + 1)
        )
        self.head = linear(w, "head")

    def forward(self, read: Tensor) -> Tensor:
        shape = self.shape
        if shape.categorical:
            x = F.embedding(read[..., 0], self.table)
            for part in range(1, read.shape[-1]):
                x = x + F.embedding(read[..., part], self.table)
        else:
            x = read @ self.table
        x = x + self.positions
        B, S, d = x.shape
        for block in self.blocks:
            qkv = block["qkv"](F.layer_norm(x, (d,)))
            q, k, v = (part.view(B, S, shape.H, -1).transpose(1, 2) for part in qkv.split(d, -1))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](mixed.transpose(1, 2).reshape(B, S, d))
            x = x + block["down"](F.relu(block["up"](F.layer_norm(x, (d,)))))
        return self.head(F.layer_norm(x[:, :: shape.stride], (d,)))


def linear(w: dict[str, Tensor], name: str) -> nn.Linear:
    layer = nn.Linear(*w[name].shape)
    with torch.no_grad():
        layer.weight.copy_(w[name].T)
        layer.bias.copy_(w[f"{name}_bias"][0])
    return layer


class GPT2(nn.Module):
    """One member in the manner of Garg et al. 2022: linear maps into and out of the library's GPT-2."""

    def __init__(self, model: StackedGPT, member: int) -> None:
        from transformers import GPT2Config, GPT2Model

        super().__init__()
        shape = self.shape = model.shape
        self.backbone = GPT2Model(
            GPT2Config(
                vocab_size=1,
                n_positions=shape.positions + 1,
                n_embd=shape.d,
                n_layer=shape.L,
                n_head=shape.H,
                activation_function="relu",
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        w = {name: values[member].detach().clone() for name, values in model.named.items()}
        self.read_in, self.read_out = nn.Linear(shape.inputs, shape.d), linear(w, "head")
        names = {"qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
        with torch.no_grad():
            self.read_in.weight.copy_(w["table"].T)
            self.read_in.bias.zero_()
            self.backbone.wpe.weight[: shape.positions] = w["positions"]
            for block, layer in enumerate(self.backbone.h, start=1):
                for ours, theirs in names.items():  # its Conv1D keeps weights as [in, out], as we do
                    layer.get_submodule(theirs).weight.copy_(w[f"{block}.{ours}"])
                    layer.get_submodule(theirs).bias.copy_(w[f"{block}.{ours}_bias"][0])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        wide = torch.cat([y.unsqueeze(-1), y.new_zeros(*y.shape, x.shape[-1] - 1)], -1)
        read = torch.stack([x, wide], 2).flatten(1, 2)
        return self.read_out(self.backbone(inputs_embeds=self.read_in(read)).last_hidden_state)[:, ::2, 0]


def train_eager(modules: list[Eager], c: Tensor, r: Tensor, fused: bool) -> list[float]:
    """Train every module on the batches [steps, K, B, T]; returns the losses of the last step."""
    last = []
    for k, module in enumerate(modules):
        adam = torch.optim.AdamW(module.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
        for step in range(len(c)):
            adam.param_groups[0]["lr"] = RATE * schedule(step, len(c))
            adam.zero_grad()
            logits = module(tokens(module.shape, c[step, k], r[step, k]))
            loss = F.cross_entropy(logits.flatten(0, 1), r[step, k].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            adam.step()
        last.append(loss.item())
    return last


def train_gpt2(modules: list[GPT2], x: Tensor, y: Tensor) -> list[float]:
    """Garg's loop: Adam, no clipping, the loss read at every step; returns the losses of the last step."""
    last = []
    for k, module in enumerate(modules):
        adam = torch.optim.Adam(module.parameters(), lr=RATE)
        for step in range(len(x)):
            adam.zero_grad()
            loss = (module(x[step, k], y[step, k]) - y[step, k]).square().mean()
            loss.backward()
            adam.step()
            value = loss.detach().item()
        last.append(value)
    return last


def train_stack(model: StackedGPT, c: Tensor, r: Tensor) -> Tensor:
    """The same for the whole stack; returns the losses of the last step, [K]."""
    steps = len(c)
    return train_gpt(model, lambda step: (c[step], r[step]), steps, rates=RATE, record=[steps - 1]).losses[0]


def agree(ours: Tensor, theirs: list[float]) -> None:
    """Fail if the losses of the first members differ: then the timings would not be of the same work."""
    gap = float((ours[: len(theirs)] - torch.tensor(theirs, dtype=ours.dtype)).abs().max())
    assert gap < 1e-3 * max(theirs), f"the two ways to train disagree by {gap}: {ours.tolist()} and {theirs}"


def best(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each call: the shortest of several, taken in turns, since other load only ever slows down."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: min(each) for name, each in times.items()}


def measure(d: int, B: int, S: int, steps: int) -> dict[str, float]:
    """Seconds per step and model at one size; peers, which gain nothing from company, train `PEERS` members."""
    pair = Architecture("pair", S, 3, 3, d=d)
    garg = Architecture("garg", S // 2, 8, d=d)
    c, r = (torch.randint(3, (steps, K, B, S), generator=stream("bench", what, d, B, S)) for what in "cr")
    x = torch.randn(steps, K, B, garg.T, garg.inputs, generator=stream("bench", "x", d, B, S))
    y = x.sum(-1)
    symbols, reals = (gaussian_gpt(shape, list(range(K))) for shape in (pair, garg))
    plain, fused = ([Eager(symbols, k) for k in range(PEERS)] for _ in range(2))
    gpt2 = [GPT2(reals, k) for k in range(PEERS)]
    ours, others = train_stack(symbols, c[:3], r[:3]), train_stack(reals, x[:1], y[:1])
    for theirs, fuse in ((plain, False), (fused, True)):
        agree(ours, train_eager(theirs, c[:3], r[:3], fuse))
    agree(others, train_gpt2(gpt2, x[:1], y[:1]))
    took = best(
        {
            "symbols": lambda: train_stack(symbols, c, r),
            "eager": lambda: train_eager(plain, c, r, False),
            "fused": lambda: train_eager(fused, c, r, True),
            "reals": lambda: train_stack(reals, x, y),
            "GPT-2": lambda: train_gpt2(gpt2, x, y),
        }
    )
    return {name: s / steps / (K if name in ("symbols", "reals") else PEERS) for name, s in took.items()}


def run() -> list[str]:
    """Measure; returns Markdown lines."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {size[:3]: measure(*size) for size in SIZES}
    finally:
        torch.set_num_threads(threads)
    lines = [
        f"### {K} small GPTs as one program, one thread",
        "",
        f"Two blocks, two heads, float32, K = {K}; thousands of training tokens per second and model. Symbols: the pair layout, against "
        "the same network as an eager `nn.Module` with fused attention, clipping and AdamW; losses agree after three steps. Real "
        "numbers: interleaved x and y, against a loop in the manner of Garg et al. 2022 around `GPT2Model` of `transformers` with "
        "the same first weights, Adam and no clipping; losses agree. Shortest of "
        f"{ROUNDS} runs, taken in turns.",
        "",
        "| d, batch, tokens | stack, symbols | eager, AdamW | eager, AdamW(fused=True) | stack, reals | GPT-2 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (d, B, S), took in found.items():
        speed = {name: B * S / s / 1e3 for name, s in took.items()}
        slower = {name: took[name] / took[own] for own, name in RIVALS}
        lines.append(
            f"| {d}, {B}, {S} | {speed['symbols']:.0f} | {speed['eager']:.0f} ({slower['eager']:.1f}×) "
            f"| {speed['fused']:.0f} ({slower['fused']:.1f}×) | {speed['reals']:.0f} "
            f"| {speed['GPT-2']:.0f} ({slower['GPT-2']:.1f}×) |"
        )
    return [*lines, "", "In brackets: by how much the stack is faster."]
