"""The parametrizations that the study sweeps, by name."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

from theory.abc import spec
from theory.abc.spec import AbcSpec

HALF = Fraction(1, 2)

TABLE_1 = ("sp", "ntp", "mfp", "mup")
INTERPOLATION = ("up:1/8", "up:1/4", "up:3/8")
TRIVIAL = ("ntp+c:1/2", "mup+c:1/2")
FAST_SP = ("sp:3/4", "sp:1/2")
CONTROLS = ("mup-flat-input", "mup-large-readout", "mup-zero-readout")
BAD_INIT = ("mup-hot-init",)
READOUTS = ("1/2", "5/8", "3/4", "7/8", "1", "9/8")
HIDDENS = ("0", "1/8", "1/4", "3/8", "1/2")
PLANE = tuple(f"plane:{readout},{hidden}" for readout in READOUTS for hidden in HIDDENS)
NAMED = TABLE_1 + INTERPOLATION + TRIVIAL + FAST_SP + CONTROLS + BAD_INIT


@cache
def spec_of(name: str, depth: int) -> AbcSpec:
    """The spec of a name at a depth: those of `theory.abc.spec.parse`, and three families of this study.

    `mup-hot-init` is μP with hidden layers that start too large, a_l + b_l smaller by 1/4 than stability wants.
    `NAME+c:VALUE` slows a parametrization's learning rate down by n^-VALUE. `plane:A,ρ` is a point of the plane
    a_{L+1} + b_{L+1} = A, a_l = ρ (ρ - 1/2 for l = 1), c = 0, a_{L+1} = 1/2, hidden layers initialised as stability
    wants them: μP is A = 1, ρ = 0, NTP is A = 1/2, ρ = 1/2, and UP(r) is the segment that joins them.
    """
    if name.startswith("plane:"):
        readout, hidden = (Fraction(part) for part in name.removeprefix("plane:").split(","))
        a = [hidden - HALF] + [hidden] * (depth - 1) + [HALF]
        b = [HALF - hidden] * depth + [readout - HALF]
        return spec.abc_spec(a, b, 0)
    if name == "mup-hot-init":
        base = spec.parse("mup", depth)
        return spec.abc_spec(base.a, [b - Fraction(1, 4) for b in base.b[:-1]] + [base.b[-1]], base.c)
    name, _, slower = name.partition("+c:")
    base = spec.parse(name, depth)
    return spec.abc_spec(base.a, base.b, [c + Fraction(slower or 0) for c in base.c], base.sigma)


def label(name: str) -> str:
    """The name as a figure writes it."""
    if name.startswith("plane:"):
        return "A = {}, ρ = {}".format(*name.removeprefix("plane:").split(","))
    if name == "mup-hot-init":
        return "μP, hidden layers too large"
    name, _, slower = name.partition("+c:")
    return spec.label(name) + (f", lr × n^-{slower}" if slower else "")


@cache
def predicted(quantity: str, name: str, depth: int, layer: int, t: int) -> float:
    """Predicted exponent of a quantity; `layer` is L + 1 for those of the output."""
    return float(spec_of(name, depth).predicted_exponent(quantity, layer, t))
