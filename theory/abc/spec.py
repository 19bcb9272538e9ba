"""abc-parametrizations with exact exponents, and what the theory predicts for each of them.

A network of L hidden layers of width n has h^1 = W^1 ξ, x^l = φ(h^l), h^{l+1} = W^{l+1} x^l, f = W^{L+1} x^L,
no biases, and
    W^l = n^{-a_l} w^l,   w^l_{αβ} ~ N(0, σ_l² n^{-2 b_l}),   SGD on w^l with learning rate η n^{-c_l}.
The paper has one c for all layers; one c_l per layer reduces to it through the symmetry of `AbcSpec.shift`.
Only two combinations per layer are seen by the function the network computes: A_l = a_l + b_l (size of W^l_0)
and C_l = 2 a_l + c_l (learning rate of W^l itself).

Source: Yang & Hu, Feature Learning in Infinite-Width Neural Networks (Tensor Programs IV), arXiv:2011.14522,
Sections 3-5.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational

Exponent = Fraction | float  # a Fraction, or plus or minus infinity

HALF = Fraction(1, 2)
HIDDEN_QUANTITIES = ("h0", "dh", "dx", "dWx", "feature_kernel")
OUTPUT_QUANTITIES = ("f0", "dWx_out", "W0dx_out", "df", "kernel_residual", "ntk_change")
QUANTITIES = HIDDEN_QUANTITIES + OUTPUT_QUANTITIES


def _exact(value: object, where: str) -> Fraction:
    """Return an int, Fraction or string such as "3/4" as a Fraction; ValueError for anything inexact."""
    if isinstance(value, (Rational, str)) and not isinstance(value, bool):
        try:
            return Fraction(value)
        except (ValueError, ZeroDivisionError):
            pass
    raise ValueError(f"{where} = {value!r} is not an exact number: give an int, a Fraction or a string like '3/4'")


@dataclass(frozen=True)
class AbcSpec:
    """One abc-parametrization: the exponents a_l, b_l, c_l for l = 1..L+1 as exact fractions.

    b_{L+1} may be `math.inf`: the readout starts at zero. `sigma` multiplies the initial standard deviations
    (default: ones) and changes no exponent. Raises ValueError for unequal lengths, fewer than two layers,
    inexact exponents, zero initialisation of a hidden layer, or a sigma that is not positive and finite.
    """

    a: tuple[Fraction, ...]
    b: tuple[Exponent, ...]
    c: tuple[Fraction, ...]
    sigma: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        lengths = {"a": len(self.a), "b": len(self.b), "c": len(self.c), "sigma": len(self.sigma) or len(self.a)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a, b, c and sigma need one entry per layer, got lengths {lengths}")
        if len(self.a) < 2:
            raise ValueError(f"a network needs a hidden layer and a readout, got {len(self.a)} layer(s) of exponents")
        b: list[Exponent] = []
        for layer, value in enumerate(self.b, start=1):
            if value == math.inf and layer < len(self.b):
                raise ValueError(f"b_{layer} = inf: only the readout b_{len(self.b)} may start at zero")
            b.append(math.inf if value == math.inf else _exact(value, f"b_{layer}"))
        for layer, scale in enumerate(self.sigma, start=1):
            if not (math.isfinite(scale) and scale > 0):
                raise ValueError(f"sigma_{layer} = {scale} must be positive and finite (zero init is b = inf)")
        object.__setattr__(self, "a", tuple(_exact(v, f"a_{i}") for i, v in enumerate(self.a, start=1)))
        object.__setattr__(self, "b", tuple(b))
        object.__setattr__(self, "c", tuple(_exact(v, f"c_{i}") for i, v in enumerate(self.c, start=1)))
        object.__setattr__(self, "sigma", tuple(float(s) for s in self.sigma) or (1.0,) * len(self.a))

    @property
    def L(self) -> int:
        """Number of hidden layers."""
        return len(self.a) - 1

    def init_exponents(self) -> tuple[Exponent, ...]:
        """A_l = a_l + b_l: an entry of W^l_0 is of size n^{-A_l}."""
        return tuple(a + b for a, b in zip(self.a, self.b, strict=True))

    def rate_exponents(self) -> tuple[Fraction, ...]:
        """C_l = 2 a_l + c_l: W^l itself moves with learning rate η n^{-C_l}."""
        return tuple(2 * a + c for a, c in zip(self.a, self.c, strict=True))

    def shift(self, theta: Fraction | int | str | Sequence[Fraction | int | str]) -> AbcSpec:
        """Return the same network written differently: a_l += θ_l, b_l -= θ_l, c_l -= 2 θ_l.

        `theta` is one number, or one per layer (L+1 of them, which needs a learning rate per layer). Training
        from the same standard normal draws gives the same f_t for all t. Raises ValueError for a wrong number
        of thetas. Source: Section 3.2, Eq. 5 for one θ; one per layer is derived here.
        """
        one = isinstance(theta, (Rational, str))
        thetas = [_exact(t, "theta") for t in ([theta] * (self.L + 1) if one else theta)]  # type: ignore[union-attr]
        if len(thetas) != self.L + 1:
            raise ValueError(f"theta has {len(thetas)} entries, the network has {self.L + 1} layers")
        return AbcSpec(
            a=tuple(a + t for a, t in zip(self.a, thetas, strict=True)),
            b=tuple(b - t for b, t in zip(self.b, thetas, strict=True)),
            c=tuple(c - 2 * t for c, t in zip(self.c, thetas, strict=True)),
            sigma=self.sigma,
        )

    def canonical(self) -> AbcSpec:
        """Return the representative of this parametrization with c_l = 0 in every layer (θ_l = c_l / 2)."""
        return self.shift([c / 2 for c in self.c])

    def r_layers(self, first_step: bool = False) -> tuple[Exponent, ...]:
        """Return r_l for l = 1..L: layer l alone moves h^l by n^{-r_l}.

        r_l = min(A_{L+1}, C_{L+1}) + C_l - 1 + 1[l=1]; the two entries of the min are the sizes of W^{L+1}_0
        and of ΔW^{L+1}_t, through which the gradient comes back. At the first step only W^{L+1}_0 is there,
        so with `first_step` the min is A_{L+1} (infinite for a zero readout: the hidden layers do not move).
        Source: Definition 3.2 with the layers kept apart as in Proposition 5.3; the first-step form and a c_l
        per layer are derived here.
        """
        return self._r_layers(self.init_exponents()[-1] if first_step else self._readout())

    def r(self) -> Exponent:
        """Return r = min_l r_l: Δx^L is of size n^{-r} (paper, Definition 3.2)."""
        return min(self.r_layers())

    def r_first_step(self) -> Exponent:
        """Return r of the first step, t = 1 (derived here); it equals `r()` whenever A_{L+1} ≤ C_{L+1}."""
        return min(self.r_layers(first_step=True))

    def stability(self) -> tuple[str, ...]:
        """Return the violated conditions of Theorem 3.3 as sentences; an empty tuple means stable."""
        found = list(self._bad_init())
        readout_rate, readout_init, r = self.rate_exponents()[-1], self.init_exponents()[-1], self.r()
        out = self.L + 1
        if r < 0:
            found.append(f"r = {r} must be at least 0: features blow up")
        if readout_rate < 1:
            found.append(f"2 a_{out} + c_{out} = {readout_rate} must be at least 1: the readout learns too fast")
        if readout_init + r < 1:
            size = readout_init + r
            found.append(f"a_{out} + b_{out} + r = {size} must be at least 1: moved features blow up the output")
        return tuple(found)

    @property
    def stable(self) -> bool:
        """Whether activations and outputs stay bounded as n grows (Theorem 3.3)."""
        return not self.stability()

    @property
    def nontrivial(self) -> bool:
        """Whether the spec is stable and its function moves by Θ(1) (Theorem 3.4)."""
        return self.stable and (self.init_exponents()[-1] + self.r() == 1 or self.rate_exponents()[-1] == 1)

    def regime(self) -> str:
        """Return "unstable", "trivial", "feature" (r = 0) or "kernel" (r > 0): Theorems 3.3-3.8, Corollary 3.9."""
        if not self.stable:
            return "unstable"
        if not self.nontrivial:
            return "trivial"
        return "feature" if self.r() == 0 else "kernel"

    def predicted_exponent(self, quantity: str, layer: int | None = None, t: int = 1) -> Exponent:
        """Return the slope of log(quantity) against log(n) after t ≥ 1 steps; -inf means exactly zero.

        Root-mean-square sizes over coordinates or outputs, at fixed t, for probe inputs that are not
        orthogonal to the training inputs and a nonlinear φ. Hidden quantities need `layer` in 1..L
        ("feature_kernel" takes L by default); the others take none or L+1. Write A = A_{L+1}, C = C_{L+1}, r°
        for `r_first_step()`, r* = r° - A + C (its counterpart for a gradient that comes back through
        ΔW^{L+1}), r = min(r°, r*); t = 1 has no r*.

        From the paper (Theorems 3.3-3.8, Proposition 5.3):
          h0          0                             f0        1/2 - A
          dx (l = L)  -r                            dWx_out   1 - C        (ΔW^{L+1} x^L)
          W0dx_out    1 - A - r  if A ≤ C           df        max(dWx_out, W0dx_out)
        Derived here, by counting sizes and central-limit cancellations:
          dh, dx      -min_{k≤l} r_k, and r_k° at t = 1
          dWx         -r_l (ΔW^l x^{l-1})
          W0dx_out    max(1 - A - r°, 1/2 - A - r*): W^{L+1}_0 correlates only with what was moved through it
          feature_kernel, kernel_residual (relative)   max(-(r° + 1/2), -2r, -r*), the minima over layers up to
                      `layer`: changes of first order through W^{L+1}_0 are zero-mean, those through ΔW^{L+1}
                      are not, nor are those of second order (for these a layer also counts the layers above
                      it, from t = 2 on). Where A + r = 1 = C and r ≤ 1/2 this is -2r.
          ntk_change  the same, and at t = 1 also 1 - C - r* - max(1 - C, 1 - A - r°): the readout moves at once

        Unstable specs raise ValueError, unless the A_l are as Theorem 3.3 wants them and the quantity is h0
        or f0, or t = 1 and r° ≥ 0 (this contains `standard_first_step_exponent`). ValueError also for unknown
        quantities, layers, or t < 1.
        """
        layer = self._check_quantity(quantity, layer, t)
        init, rate = self.init_exponents()[-1], self.rate_exponents()[-1]
        tame = quantity in ("h0", "f0") or (t == 1 and self.r_first_step() >= 0)
        if not self.stable and (self._bad_init() or not tame):
            why = "; ".join(self.stability())
            raise ValueError(f"no exponent is predicted for an unstable parametrization at t = {t}: {why}")
        depth = layer if quantity in HIDDEN_QUANTITIES else self.L
        r_init = self._r_layers(init)  # moved through W^{L+1}_0
        r_rate = self._r_layers(rate if t > 1 else math.inf)  # moved through ΔW^{L+1}, from the second step on
        low_init: Exponent = min(r_init[:depth])
        low_rate: Exponent = min(r_rate[:depth])
        if quantity == "h0":
            return Fraction(0)
        if quantity == "f0":
            return HALF - init
        if quantity in ("dh", "dx"):
            return -min(low_init, low_rate)
        if quantity == "dWx":
            return -min(r_init[layer - 1], r_rate[layer - 1])
        readout_moves: Exponent = 1 - rate
        through_start, through_change = 1 - init - low_init, HALF - init - low_rate
        if quantity == "dWx_out":
            return readout_moves
        if quantity == "W0dx_out":
            return max(through_start, through_change)
        if quantity == "df":
            return max(readout_moves, through_start, through_change)
        low = min(low_init, low_rate)
        overall = low if t == 1 else min(r_init + r_rate)
        orders: list[Exponent] = [low_init + HALF, low + overall, low_rate]
        if quantity == "ntk_change" and t == 1:
            size_at_start: Exponent = max(readout_moves, through_start)
            orders.append(min(self._r_layers(rate)) + size_at_start - readout_moves)
        return -min(orders)

    def _readout(self) -> Exponent:
        return min(self.init_exponents()[-1], self.rate_exponents()[-1])

    def _r_layers(self, readout: Exponent) -> tuple[Exponent, ...]:
        """r_l when the gradient comes back through readout weights of size n^{-readout}."""
        rates = self.rate_exponents()[:-1]
        # The inner product of two inputs of layer l is Θ(n), but Θ(1) for the data themselves: the indicator.
        return tuple(readout + rate - 1 + (1 if index == 0 else 0) for index, rate in enumerate(rates))

    def _bad_init(self) -> tuple[str, ...]:
        """Conditions of Theorem 3.3 on the initial network that are violated."""
        found = []
        for layer, size in enumerate(self.init_exponents(), start=1):
            if layer == self.L + 1 and size < HALF:
                found.append(f"a_{layer} + b_{layer} = {size} must be at least 1/2: the initial output blows up")
            elif layer <= self.L and size != (want := HALF if layer > 1 else Fraction(0)):
                found.append(f"a_{layer} + b_{layer} = {size} must be {want}: h_0^{layer} is not Θ(1)")
        return tuple(found)

    def _check_quantity(self, quantity: str, layer: int | None, t: int) -> int:
        """Return the layer meant, or raise ValueError for a quantity, layer or step that does not exist."""
        if quantity not in QUANTITIES:
            raise ValueError(f"unknown quantity {quantity!r}; nearest: {_nearest(quantity, QUANTITIES)!r}")
        if t < 1:
            raise ValueError(f"t = {t}: exponents are predicted after t >= 1 steps")
        if quantity in OUTPUT_QUANTITIES:
            if layer not in (None, self.L + 1):
                raise ValueError(f"{quantity!r} is of the output: layer must be None or {self.L + 1}, not {layer}")
            return self.L + 1
        if layer is None and quantity == "feature_kernel":
            return self.L
        if layer is None or not 1 <= layer <= self.L:
            raise ValueError(f"{quantity!r} needs a hidden layer in 1..{self.L}, not {layer}")
        return layer


def abc_spec(
    a: Sequence[Fraction | int | str],
    b: Sequence[Exponent | int | str],
    c: Fraction | int | str | Sequence[Fraction | int | str] = 0,
    sigma: float | Sequence[float] = 1.0,
) -> AbcSpec:
    """Return an `AbcSpec` from ints, Fractions or strings like "3/4"; one c or sigma stands for all layers.

    Raises ValueError as `AbcSpec` does.
    """
    cs = [c] * len(a) if isinstance(c, (Rational, str)) else list(c)  # type: ignore[arg-type]
    sigmas = [float(sigma)] * len(a) if isinstance(sigma, (int, float)) else list(sigma)
    return AbcSpec(tuple(a), tuple(b), tuple(cs), tuple(sigmas))  # type: ignore[arg-type]


def _layers(first: object, middle: object, last: object, L: int) -> list:
    if L < 1:
        raise ValueError(f"L = {L}: a network needs at least one hidden layer")
    return [first] + [middle] * (L - 1) + [last]


def standard(L: int, c: Fraction | int | str = 1) -> AbcSpec:
    """Return the standard parametrization SP with learning rate η n^{-c}; Table 1 has c = 1, the largest stable rate.

    With c = 1, r = 1/2 for L ≥ 2 but 3/2 at L = 1, where only the readout trains in the limit.
    """
    return abc_spec([0] * (L + 1), _layers(0, HALF, HALF, L), c)


def neural_tangent(L: int) -> AbcSpec:
    """Return the neural tangent parametrization NTP (Table 1): r = 1/2, kernel regime."""
    return abc_spec(_layers(0, HALF, HALF, L), [0] * (L + 1))


def mean_field(L: int = 1) -> AbcSpec:
    """Return the mean field parametrization MFP (Table 1), for one hidden layer; it equals μP (Section 5)."""
    if L != 1:
        raise ValueError(f"L = {L}: the mean field parametrization is defined for one hidden layer only")
    return abc_spec([0, 1], [0, 0], -1)


def maximal_update(L: int) -> AbcSpec:
    """Return the maximal update parametrization μP (Definition 5.1): every r_l = 0."""
    return abc_spec(_layers(-HALF, 0, HALF, L), [HALF] * (L + 1))


def uniform(L: int, r: Fraction | int | str) -> AbcSpec:
    """Return UP(r), in which every hidden layer has r_l = r: from μP (r = 0) to NTP (r = 1/2), derived here.

    Raises ValueError for r outside [0, 1/2], where no such stable nontrivial point exists.
    """
    r = _exact(r, "r")
    if not 0 <= r <= HALF:
        raise ValueError(f"r = {r} must lie in [0, 1/2]")
    return abc_spec(_layers(r - HALF, r, HALF, L), [HALF - r] * (L + 1))


def standard_first_step_exponent(c: Fraction | int | str) -> Fraction:
    """Return 1 - c, the exponent of Δf_1 in SP with learning rate η n^{-c}, 1/2 ≤ c ≤ 1, for every L and φ.

    Below c = 1 SP is unstable and this is how (Section 4, Theorem 4.1, Eq. 12-13). Raises ValueError outside
    [1/2, 1]: for c < 1/2 and L ≥ 2 the hidden layers blow up too and the exponent depends on φ.
    """
    c = _exact(c, "c")
    if not HALF <= c <= 1:
        raise ValueError(f"c = {c}: the one-step law of SP holds for 1/2 <= c <= 1")
    return 1 - c


_LABELS = {
    "sp": "SP, c = {}",
    "ntp": "NTP",
    "mfp": "MFP",
    "mup": "μP",
    "up": "UP(r = {})",
    "mup-flat-input": "μP, input layer as in SP",
    "mup-large-readout": "μP, readout too large",
    "mup-zero-readout": "μP, readout from zero",
}


def parse(name: str, L: int) -> AbcSpec:
    """Return the spec called `name` with L hidden layers.

    Names: "sp" (c = 1), "sp:3/4", "ntp", "mfp" (L = 1), "mup", "up:1/4", and three neighbours of μP that
    serve as controls: "mup-flat-input" (a_1 = b_1 = 0: SP with its logits divided by √n, Section 5; h^1 stops
    moving), "mup-large-readout" (b_{L+1} = 0: unstable) and "mup-zero-readout" (b_{L+1} = ∞: hidden layers
    wait one step). Raises ValueError naming the nearest valid name, or for an argument that is missing,
    superfluous or out of range.
    """
    base, argument = _split(name)
    if base == "sp":
        return standard(L, 1 if argument is None else argument)
    if base == "up":
        assert argument is not None
        return uniform(L, argument)
    if base in ("ntp", "mfp"):
        return neural_tangent(L) if base == "ntp" else mean_field(L)
    mup = maximal_update(L)
    if base == "mup-flat-input":
        return AbcSpec((Fraction(0), *mup.a[1:]), (Fraction(0), *mup.b[1:]), mup.c)
    if base == "mup-large-readout":
        return AbcSpec(mup.a, (*mup.b[:-1], Fraction(0)), mup.c)
    if base == "mup-zero-readout":
        return AbcSpec(mup.a, (*mup.b[:-1], math.inf), mup.c)
    return mup


def label(name: str) -> str:
    """Return the name as figures write it: "mup" -> "μP", "sp:3/4" -> "SP, c = 3/4"; ValueError as `parse`."""
    base, argument = _split(name)
    return _LABELS[base].format(1 if argument is None else argument)


def _split(name: str) -> tuple[str, Fraction | None]:
    """Return the checked base name and the argument of a name like "up:1/4"."""
    base, colon, text = name.partition(":")
    if base not in _LABELS:
        raise ValueError(f"unknown parametrization {name!r}; nearest: {_nearest(base, tuple(_LABELS))!r}")
    if base == "up" and not colon:
        raise ValueError(f"{name!r} needs its r, as in 'up:1/4'")
    if colon and base not in ("sp", "up"):
        raise ValueError(f"{name!r}: {base!r} takes no argument")
    return base, _exact(text, name) if colon else None


def _nearest(word: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.0)[0]
