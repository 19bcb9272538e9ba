from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theory.ensemble import normal, schedule, stream
from theory.icl import gpt
from theory.icl.gpt import StackedGPT, causal_attention, gaussian_gpt, into_unit_ball, parameter_shapes
from theory.icl.layouts import LAYOUTS, Architecture, tokens
from theory.icl.pretraining import train_gpt

F64 = torch.float64
B = 4
SHAPES = {
    "pair": Architecture("pair", 5, 3, 2, d=8),
    "token": Architecture("token", 5, 3, 2, d=8),
    "markov": Architecture("markov", 5, 4, 4, d=8),
    "regression": Architecture("regression", 5, 3, d=8),
    "garg": Architecture("garg", 5, 3, d=8),
    "unit-ball": Architecture("pair", 5, 3, 2, d=8, norm="unit-ball"),
    "no blocks": Architecture("pair", 5, 3, 2, d=8, L=0),
    "wide alphabet": Architecture("pair", 3, 7, 6, d=4, L=1, H=1),  # more table rows than 4 d
    "long": Architecture("pair", 19, 3, 2, d=4, L=1, H=4),  # more tokens than a vector register holds
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def data(shape: Architecture, *lead: int, tag: str = "data") -> tuple[Tensor, Tensor]:
    """Random covariates and responses, [*lead, T]."""
    size, generator = (*lead, shape.T), stream(tag, shape.layout)
    if shape.layout == "markov":
        chain = torch.randint(shape.inputs, (*lead, shape.T + 1), generator=generator)
        return chain[..., :-1], chain[..., 1:]
    if shape.categorical:
        return (
            torch.randint(shape.inputs, size, generator=generator),
            torch.randint(shape.outputs, size, generator=generator),
        )
    x = normal((*size, shape.inputs), tag, "x")
    return x, x.sum(-1) + normal(size, tag, "y")


class Plain(nn.Module):
    """One member as a plain module that builds its tokens example by example and attends by an explicit softmax."""

    def __init__(self, model: StackedGPT, member: int) -> None:
        super().__init__()
        self.shape = model.shape
        self.w = nn.ParameterDict(
            {key.replace(".", "_"): nn.Parameter(t[member].detach().clone()) for key, t in model.named.items()}
        )

    def sequence(self, c: Tensor, r: Tensor) -> tuple[Tensor, list[int]]:
        """Tokens [S, d] of one sequence and where its responses are predicted."""
        shape, table = self.shape, self.w["table"]
        C, R, T = shape.inputs, shape.outputs, len(r)
        zero = torch.zeros(C, dtype=F64)
        match shape.layout:
            case "pair":
                E, start, Q = table[: C * R].view(C, R, -1), table[C * R], table[C * R + 1 :]
                rows = [(E[c[i - 1], r[i - 1]] if i else start) + Q[c[i]] for i in range(T)]
            case "token":
                rows = [row for i in range(T) for row in (table[c[i]], table[C + r[i]])]
            case "markov":
                rows = [table[c[i]] for i in range(T)]
            case "regression":
                y = torch.cat([torch.zeros(1, dtype=F64), r])
                rows = [torch.cat([c[i - 1] if i else zero, y[i : i + 1], c[i]]) @ table for i in range(T)]
            case "garg":
                wide = torch.zeros(T, C, dtype=F64)
                wide[:, 0] = r
                rows = [row @ table for i in range(T) for row in (c[i], wide[i])]
        if shape.stride == 2:
            rows = rows[:-1]  # the last response is only predicted
        return torch.stack(rows) + self.w["positions"][: len(rows)], list(range(0, len(rows), shape.stride))

    def attend(self, x: Tensor, block: int) -> Tensor:
        w, (S, d), H = self.w, x.shape, self.shape.H
        q, k, v = ((x @ w[f"{block}_qkv"]) + w[f"{block}_qkv_bias"]).split(d, -1)
        heads = []
        for h in range(H):
            part = slice(h * d // H, (h + 1) * d // H)
            scores = q[:, part] @ k[:, part].T / math.sqrt(d / H)
            heads.append(scores.masked_fill(torch.ones(S, S).triu(1).bool(), -math.inf).softmax(-1) @ v[:, part])
        return torch.cat(heads, -1) @ w[f"{block}_out"] + w[f"{block}_out_bias"]

    def change(self, x: Tensor, block: int) -> Tensor:
        w = self.w
        return torch.relu(x @ w[f"{block}_up"] + w[f"{block}_up_bias"]) @ w[f"{block}_down"] + w[f"{block}_down_bias"]

    def forward(self, c: Tensor, r: Tensor) -> Tensor:
        """Logits [T, R], or ŷ [T], of one sequence, and the residual stream after each half block."""
        w, d = self.w, self.shape.d
        x, places = self.sequence(c, r)
        self.stream = []
        for block in range(1, self.shape.L + 1):
            if self.shape.norm == "pre-ln":
                x = x + self.attend(F.layer_norm(x, (d,)), block)
                x = x + self.change(F.layer_norm(x, (d,)), block)
            else:
                for half, gamma in ((self.attend, "gamma_1"), (self.change, "gamma_2")):
                    x = w[f"{block}_{gamma}"] * x + half(x, block)
                    x = x / x.norm(dim=1, keepdim=True).clamp(min=1)
                    self.stream.append(x)
        if self.shape.norm == "pre-ln":
            x = F.layer_norm(x, (d,))
        outputs = (x @ w["head"] + w["head_bias"])[places]
        return outputs if self.shape.categorical else outputs[:, 0]

    def loss(self, c: Tensor, r: Tensor) -> Tensor:
        outputs = torch.stack([self(*one) for one in zip(c, r, strict=True)])
        if self.shape.categorical:
            return -outputs.log_softmax(-1).gather(-1, r.unsqueeze(-1)).mean()
        return (outputs - r).square().mean()


@every_shape
def test_predictions_are_those_of_a_plain_module(name: str) -> None:
    shape = SHAPES[name]
    model, (c, r) = gaussian_gpt(shape, [3, 5], dtype=F64), data(shape, 2, B)
    found = model.predict(c, r)
    assert found.shape == ((2, B, shape.T, shape.outputs) if shape.categorical else (2, B, shape.T))
    for k in range(2):
        outputs = torch.stack([Plain(model, k)(*one) for one in zip(c[k], r[k], strict=True)])
        expected = outputs.log_softmax(-1) if shape.categorical else outputs
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-12)


@every_shape
def test_training_is_adamw_on_a_plain_module(name: str) -> None:
    """Other rates, decays and clips for each member: 6 steps of torch.optim.AdamW with its own clipping."""
    shape, steps = SHAPES[name], 6
    rates, decays, clips = torch.tensor([1e-2, 3e-3]), torch.tensor([0.0, 0.1]), torch.tensor([0.05, math.inf])
    model, batches = gaussian_gpt(shape, [3, 5], dtype=F64), [data(shape, 2, B, tag=f"{s}") for s in range(steps)]
    plain = [Plain(model, k) for k in range(2)]
    seen = train_gpt(
        model, batches.__getitem__, steps, rates=rates, weight_decay=decays, clip=clips, record=range(steps)
    )
    for k, module in enumerate(plain):
        options = {"lr": 0.0, "betas": (0.9, 0.98), "weight_decay": float(decays[k])}
        adam = torch.optim.AdamW(module.parameters(), **options)
        for step, (c, r) in enumerate(batches):
            adam.param_groups[0]["lr"] = float(rates[k].double()) * schedule(step, steps)
            adam.zero_grad()
            loss = module.loss(c[k], r[k])
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), float(clips[k]))
            adam.step()
            assert float(seen.losses[step, k]) == pytest.approx(loss.item(), abs=1e-9), (k, step)
        for key, values in model.named.items():
            torch.testing.assert_close(values[k].detach(), module.w[key.replace(".", "_")].data, rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("name", ["pair", "garg", "unit-ball"])
def test_members_train_in_a_stack_as_they_do_alone(name: str, chunk: int | None) -> None:
    shape, steps, seeds = SHAPES[name], 20, [7, 1, 4]
    batches, rates = [data(shape, 3, B, tag=f"{s}") for s in range(steps)], torch.tensor([1e-2, 3e-2, 1e-3])
    stack = gaussian_gpt(shape, seeds, dtype=F64)
    train_gpt(stack, batches.__getitem__, steps, rates=rates, chunk=chunk)
    for k, seed in enumerate(seeds):
        alone = gaussian_gpt(shape, [seed], dtype=F64)
        first = alone.parameters.clone()
        own = [(c[k : k + 1], r[k : k + 1]) for c, r in batches]
        train_gpt(alone, own.__getitem__, steps, rates=rates[k : k + 1])
        assert float((alone.parameters - first).abs().max()) > 1e-3
        torch.testing.assert_close(stack.parameters[k], alone.parameters[0], rtol=0, atol=1e-9)


@every_shape
def test_the_future_changes_nothing(name: str) -> None:
    """Predictions up to r_i stay when everything after c_i changes, and so do those of a shorter prompt."""
    shape = SHAPES[name]
    model, (c, r), (c2, r2) = gaussian_gpt(shape, [3], dtype=F64), data(shape, B), data(shape, B, tag="other")
    t = shape.T // 2 + 1
    if shape.layout == "markov":
        chain = torch.cat([c[:, :t], c2[:, t:], r2[:, -1:]], 1)
        c2, r2 = chain[:, :-1], chain[:, 1:]
    else:
        c2, r2 = torch.cat([c[:, :t], c2[:, t:]], 1), torch.cat([r[:, : t - 1], r2[:, t - 1 :]], 1)
    before, after, short = model.predict(c, r), model.predict(c2, r2), model.predict(c[:, :t], r[:, :t])
    torch.testing.assert_close(after[:, :, :t], before[:, :, :t], rtol=0, atol=1e-13)
    torch.testing.assert_close(short, before[:, :, :t], rtol=0, atol=1e-13)
    assert float((after - before)[:, :, t:].abs().max()) > 1e-3


def test_gradients_reach_the_past_and_the_present_alone() -> None:
    """The derivative of ŷ_i on x_j is zero exactly for j > i, that on y_j for j ≥ i."""
    shape = SHAPES["garg"]
    model, (x, y) = gaussian_gpt(shape, [3], dtype=F64), data(shape, 1)
    x.requires_grad_()
    y.requires_grad_()
    outputs = model._outputs(x, y)[0, 0]
    for i in range(shape.T):
        on_x, on_y = torch.autograd.grad(outputs[i], (x, y), retain_graph=True)
        assert on_x[0].abs().amax(-1).gt(1e-12).tolist() == [j <= i for j in range(shape.T)]
        assert on_y[0].abs().gt(1e-12).tolist() == [j < i for j in range(shape.T)]


@pytest.mark.parametrize("S", [1, 5, 16, 21])
def test_attention_and_its_gradient_are_those_of_the_fused_kernel(S: int, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, on_output = normal((3, S, 24), "qkv").requires_grad_(), normal((3, S, 8), "signal")
    explicit = causal_attention(qkv, 2)
    (gradient,) = torch.autograd.grad(explicit, qkv, on_output)
    monkeypatch.setattr(gpt, "EXPLICIT_LENGTH", 0)
    fused = causal_attention(qkv, 2)
    assert "_Attention" in type(explicit.grad_fn).__name__
    torch.testing.assert_close(explicit, fused, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, torch.autograd.grad(fused, qkv, on_output)[0], rtol=0, atol=1e-13)


def test_rows_in_the_unit_ball() -> None:
    x = normal((6, 4), "rows") * torch.tensor([0.0, 0.1, 0.3, 1.0, 5.0, 100.0], dtype=F64).unsqueeze(1)
    norms = into_unit_ball(x).norm(dim=1)
    torch.testing.assert_close(norms, x.norm(dim=1).clamp(max=1.0))
    torch.testing.assert_close(F.cosine_similarity(into_unit_ball(x), x)[1:], torch.ones(5, dtype=F64))
    inside = (0.3 * x[3] / x[3].norm()).requires_grad_()
    (gradient,) = torch.autograd.grad(into_unit_ball(inside).sum(), inside)
    torch.testing.assert_close(gradient, torch.ones(4, dtype=F64))


def test_unit_ball_network_projects_after_every_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, found = SHAPES["unit-ball"], []

    def spy(x: Tensor) -> Tensor:
        found.append(into_unit_ball(x))
        return found[-1]

    monkeypatch.setattr(gpt, "into_unit_ball", spy)
    big = gaussian_gpt(shape, [3, 5], dtype=F64)
    big.parameters.mul_(3.0)
    c, r = data(shape, B)
    big.predict(c, r)
    norms = torch.stack(found).norm(dim=-1)
    assert len(found) == 2 * shape.L
    assert float(norms.max()) <= 1 + 1e-12
    assert float(norms.max()) > 0.999, "nothing was projected"
    plain = Plain(big, 1)
    plain(c[2], r[2])
    for ours, theirs in zip(found, plain.stream, strict=True):
        torch.testing.assert_close(ours[1].view(B, shape.T, -1)[2], theirs, rtol=0, atol=1e-12)


def test_gammas_start_at_one_and_weight_the_residual() -> None:
    shape = SHAPES["unit-ball"]
    model, (c, r) = gaussian_gpt(shape, [3], dtype=F64), data(shape, B)
    gammas = [key for key in model.named if "gamma" in key]
    assert len(gammas) == 2 * shape.L
    assert all(model.named[key].item() == 1 for key in gammas)
    before, (_, gradients) = model.predict(c, r), model.gradients(c, r)
    named = model.with_parameters(gradients).named
    assert all(abs(named[key].item()) > 1e-9 for key in gammas)
    with torch.no_grad():
        model.named[gammas[0]].fill_(0.0)
    assert float((model.predict(c, r) - before).abs().max()) > 1e-3


def test_loss_of_the_token_layout_is_of_responses_alone() -> None:
    """Mean −log P(r_i | c_1, r_1, ..., c_i): covariates are not predicted, and there are R outputs only."""
    shape = SHAPES["token"]
    model, (c, r) = gaussian_gpt(shape, [3, 5], dtype=F64), data(shape, 2, B)
    assert shape.positions == 2 * shape.T - 1
    assert (
        tokens(shape, c[0, :1], r[0, :1])[0, :, 0].tolist()
        == [symbol for pair in zip(c[0, 0].tolist(), (r[0, 0] + 3).tolist(), strict=True) for symbol in pair][:-1]
    )
    each = -model.predict(c, r).gather(-1, r.unsqueeze(-1))
    torch.testing.assert_close(model.losses(c, r), each.mean((1, 2, 3)))
    torch.testing.assert_close(model.gradients(c, r)[0], each.mean((1, 2, 3)))


@pytest.mark.parametrize("name", ["pair", "regression"])
def test_chunks_and_shared_data_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES[name]
    model, (c, r) = gaussian_gpt(shape, [3, 5], dtype=F64), data(shape, 7)
    whole, loss = model.predict(c, r), model.losses(c, r)
    monkeypatch.setattr(gpt, "CHUNK_NUMBERS", 3 * 2 * 5 * 32)
    assert [len(part) for _, part in model._chunks(c, r)] == [3, 3, 1]
    repeated = [t.expand(2, *t.shape) for t in (c, r)]
    for inputs in ((c, r), repeated):
        torch.testing.assert_close(model.predict(*inputs), whole, rtol=0, atol=1e-13)
        torch.testing.assert_close(model.losses(*inputs), loss, rtol=0, atol=1e-13)


def test_first_numbers_depend_on_the_seed_alone() -> None:
    shape = Architecture("pair", 16, 5, 5, d=32, L=3)
    one, other = gaussian_gpt(shape, [4, 9]), gaussian_gpt(shape, [9, 2, 4], dtype=F64)
    assert torch.equal(one.parameters[0].double(), other.parameters[2].float().double())
    assert torch.equal(one.parameters[1].double(), other.parameters[0].float().double())
    assert not torch.equal(one.parameters[0], one.parameters[1])
    for name, (size, std) in parameter_shapes(shape).items():
        drawn = other.named[name].detach()
        assert drawn.shape == (3, *size)
        if std:
            assert float(drawn.std()) == pytest.approx(std, rel=6 / math.sqrt(2 * drawn.numel()))
        else:
            assert not drawn.any()
    scales = {name: std * math.sqrt(size[0]) for name, (size, std) in parameter_shapes(shape).items()}
    assert scales["2.qkv"] == scales["2.up"] == scales["head"] == pytest.approx(1)
    assert scales["2.out"] == scales["2.down"] == pytest.approx(1 / math.sqrt(6))


def test_mixed_precision_comes_close() -> None:
    shape = Architecture("pair", 16, 3, 3)
    full, mixed = gaussian_gpt(shape, [1, 2]), gaussian_gpt(shape, [1, 2], autocast=torch.bfloat16)
    c, r = data(shape, 8)
    difference = mixed.predict(c, r).exp() - full.predict(c, r).exp()
    assert 0 < float(difference.abs().max()) < 0.02
    (loss, gradient), (expected, exact) = mixed.gradients(c, r), full.gradients(c, r)
    assert gradient.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0.01)
    assert float((gradient - exact).norm() / exact.norm()) < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "pairs"}, "layout = 'pairs' is not one of pair, token, markov, regression, garg"),
        ({"norm": "ln"}, "norm = 'ln' is not one of pre-ln, unit-ball"),
        ({"H": 3}, "the width d = 16 must be a multiple of the number of heads H = 3"),
        ({"L": -1}, "L = -1 must be at least 0"),
        ({"T": 0}, "T = 0 must be at least 1"),
        ({"layout": "markov", "inputs": 4}, "one alphabet, but inputs = 4 and outputs = 3"),
        ({"layout": "garg"}, "outputs = 3 must be 1"),
    ],
)
def test_impossible_architectures_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture(**{"layout": "pair", "T": 8, "inputs": 3, "outputs": 3} | change)


def test_data_that_do_not_fit_are_refused() -> None:
    pair, markov, garg = (gaussian_gpt(SHAPES[name], [1, 2]) for name in ("pair", "markov", "garg"))
    c, r = data(pair.shape, B)
    with pytest.raises(ValueError, match=r"covariates must lie in 0\.\.2, got 1\.\.3"):
        pair.predict(c + 1, r)
    with pytest.raises(ValueError, match=r"responses must lie in 0\.\.1, got -1\.\.0"):
        pair.losses(c, r - 1)
    with pytest.raises(ValueError, match="6 examples does not fit: the network has positions for 1 to 5"):
        pair.predict(*(torch.zeros(B, 6, dtype=torch.int64) for _ in "cr"))
    with pytest.raises(ValueError, match="int64 c and r of one shape"):
        pair.predict(c[:, 1:], r)
    with pytest.raises(ValueError, match=r"\[K, n, t\] with K = 2, got \[3, 4, 5\]"):
        pair.predict(c.expand(3, B, 5), r.expand(3, B, 5))
    with pytest.raises(ValueError, match=r"c_i = r_\{i-1\}"):
        markov.predict(*(torch.arange(4).expand(B, 4) for _ in "cr"))
    with pytest.raises(ValueError, match=r"real x \[..., t, 3\] and y"):
        garg.predict(torch.zeros(B, 5, 2), torch.zeros(B, 5))
    with pytest.raises(ValueError, match="at least one member"):
        gaussian_gpt(pair.shape, [])
    with pytest.raises(ValueError, match=r"parameters must be \[K, P\]"):
        StackedGPT(pair.shape, torch.zeros(2, 7))


def test_every_layout_is_tested() -> None:
    assert {shape.layout for shape in SHAPES.values()} == set(LAYOUTS)
