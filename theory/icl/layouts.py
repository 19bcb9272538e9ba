"""How a prompt (c_1, r_1, ..., c_t, r_t, c_{t+1}) becomes tokens, and the shape of the networks that read them.

With T examples of a covariate c_i and a response r_i, every layout predicts r_i from c_1, r_1, ..., c_{i-1}, r_{i-1}, c_i:

    pair        token i = E[c_{i-1}, r_{i-1}] + Q[c_i], with a start symbol in place of example 0
    token       c_1, r_1, c_2, ..., r_{T-1}, c_T as tokens of their own; r_i is read off at c_i and nowhere else
    markov      token i = E[c_i] with c_i = r_{i-1}: a plain chain r_0 = c_1, r_1, ..., r_{T-1}, next symbol predicted
    regression  token i = A (x_{i-1}, y_{i-1}, x_i), with zeros in place of example 0
    garg        x_1, (y_1, 0, ..., 0), x_2, ..., x_T, each times A; ŷ_i is read off at x_i (Garg et al. 2022, section 2)

The last response of a sequence is a target only, so it never enters as a token. All layouts add learned positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CATEGORICAL = ("pair", "token", "markov")
REAL = ("regression", "garg")
LAYOUTS = (*CATEGORICAL, *REAL)
NORMS = ("pre-ln", "unit-ball")


@dataclass(frozen=True)
class Architecture:
    """The shape of a small GPT: networks of one architecture can share a stack.

    layout   one of `LAYOUTS`
    T        examples in a training sequence; longer prompts have no positions
    inputs   C, the number of covariate symbols, or d_x, the dimension of a real covariate
    outputs  R, the number of responses; 1 for the real layouts
    d, L, H  width, number of blocks (0: none) and heads
    norm     "pre-ln", or "unit-ball": after each residual every row is projected into the unit ball (Zhang et al. 2023,
             section 5)

    Raises ValueError, with the offending value, for a shape that no network can have.
    """

    layout: str
    T: int
    inputs: int
    outputs: int = 1
    d: int = 16
    L: int = 2
    H: int = 2
    norm: str = "pre-ln"

    def __post_init__(self) -> None:
        for what, value, known in (("layout", self.layout, LAYOUTS), ("norm", self.norm, NORMS)):
            if value not in known:
                raise ValueError(f"{what} = {value!r} is not one of {', '.join(known)}")
        for what, count, least in (
            ("T", self.T, 1),
            ("inputs", self.inputs, 1),
            ("outputs", self.outputs, 1),
            ("d", self.d, 1),
            ("L", self.L, 0),
            ("H", self.H, 1),
        ):
            if count < least:
                raise ValueError(f"{what} = {count} must be at least {least}")
        if self.d % self.H:
            raise ValueError(f"the width d = {self.d} must be a multiple of the number of heads H = {self.H}")
        if self.layout == "markov" and self.inputs != self.outputs:
            raise ValueError(
                f"layout 'markov' has one alphabet, but inputs = {self.inputs} and outputs = {self.outputs}"
            )
        if self.layout in REAL and self.outputs != 1:
            raise ValueError(f"layout {self.layout!r} predicts one number, so outputs = {self.outputs} must be 1")

    @property
    def categorical(self) -> bool:
        """Whether responses are symbols, not real numbers."""
        return self.layout in CATEGORICAL

    @property
    def stride(self) -> int:
        """How many tokens lie between one prediction and the next."""
        return 2 if self.layout in ("token", "garg") else 1

    @property
    def positions(self) -> int:
        """Tokens in a sequence of T examples."""
        return self.stride * (self.T - 1) + 1

    @property
    def width_in(self) -> int:
        """Rows of the embedding table, or features of a real token."""
        C, R = self.inputs, self.outputs
        return {"pair": C * R + 1 + C, "token": C + R, "markov": C, "regression": 2 * C + 1, "garg": C}[self.layout]


def tokens(shape: Architecture, covariates: Tensor, responses: Tensor) -> Tensor:
    """Return what the network reads: table rows [..., S, m], int64, or features [..., S, width_in].

    A categorical token is the sum of m table rows (2 for "pair", else 1). Covariates are symbols [..., t], or real
    [..., t, d_x], and responses [..., t] with t ≤ T; the last response is not read. Raises ValueError for sequences
    that do not fit the architecture, symbols out of range, and a Markov chain whose c_i is not r_{i-1}.
    """
    _check(shape, covariates, responses)
    c, r = covariates, responses
    C, R = shape.inputs, shape.outputs
    if shape.layout == "pair":
        start = c.new_full((*c.shape[:-1], 1), C * R)
        before = torch.cat([start, c[..., :-1] * R + r[..., :-1]], -1)
        return torch.stack([before, c + (C * R + 1)], -1)
    if shape.layout == "token":
        return torch.stack([c, r + C], -1).flatten(-2)[..., :-1].unsqueeze(-1)
    if shape.layout == "markov":
        return c.unsqueeze(-1)
    y = r.unsqueeze(-1)
    if shape.layout == "regression":
        before = torch.cat([c[..., :-1, :], y[..., :-1, :]], -1)
        before = torch.cat([before.new_zeros(*before.shape[:-2], 1, C + 1), before], -2)
        return torch.cat([before, c], -1)
    padded = torch.cat([y, y.new_zeros(*y.shape[:-1], C - 1)], -1)
    return torch.stack([c, padded], -2).flatten(-3, -2)[..., :-1, :]


def _check(shape: Architecture, c: Tensor, r: Tensor) -> None:
    t = r.shape[-1]
    if not 1 <= t <= shape.T:
        raise ValueError(f"a sequence of {t} examples does not fit: the network has positions for 1 to {shape.T}")
    if not shape.categorical:
        if c.shape != (*r.shape, shape.inputs) or c.dtype != r.dtype or not c.dtype.is_floating_point:
            raise ValueError(
                f"layout {shape.layout!r} needs real x [..., t, {shape.inputs}] and y [..., t] of one dtype, got "
                f"{c.dtype} {list(c.shape)} and {r.dtype} {list(r.shape)}"
            )
        return
    if c.shape != r.shape or c.dtype != torch.int64 or r.dtype != torch.int64:
        raise ValueError(
            f"layout {shape.layout!r} needs int64 c and r of one shape [..., t], got {c.dtype} {list(c.shape)} and "
            f"{r.dtype} {list(r.shape)}"
        )
    for what, symbols, count in (("covariates", c, shape.inputs), ("responses", r, shape.outputs)):
        low, high = (int(bound) for bound in symbols.aminmax()) if symbols.numel() else (0, 0)
        if low < 0 or high >= count:  # unchecked, they would read the table of another member
            raise ValueError(f"{what} must lie in 0..{count - 1}, got {low}..{high}")
    if shape.layout == "markov" and not torch.equal(c[..., 1:], r[..., :-1]):
        raise ValueError("layout 'markov' needs c_i = r_{i-1}: pass c = x[..., :-1] and r = x[..., 1:] of one chain")
