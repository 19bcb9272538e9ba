from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction as F

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.abc.spec import (
    AbcSpec,
    abc_spec,
    label,
    maximal_update,
    mean_field,
    neural_tangent,
    parse,
    standard,
    standard_first_step_exponent,
    uniform,
)

HALF = F(1, 2)
INF = math.inf
NAMES = ("sp", "sp:3/4", "sp:1/2", "ntp", "mfp", "mup", "up:0", "up:1/8", "up:1/4", "up:1/2")
CONTROLS = ("mup-flat-input", "mup-large-readout", "mup-zero-readout")

SLOW_ZERO_READOUT = abc_spec(["-3/8", "1/2"], ["3/8", INF])
SMALL_READOUT = abc_spec(["-1/2", "1/2"], ["1/2", "3/4"])  # A = 5/4 > C = 1

quarters = st.integers(-8, 8).map(lambda k: F(k, 4))


@st.composite
def any_specs(draw: st.DrawFn) -> AbcSpec:
    """Exponents from a coarse grid, so that equalities such as r = 0 are hit; one c per layer; some zero readouts."""
    layers = draw(st.integers(2, 5))
    a, b, c = (draw(st.lists(quarters, min_size=layers, max_size=layers)) for _ in range(3))
    zero_readout = draw(st.booleans())
    return abc_spec(a, [*b[:-1], INF] if zero_readout else b, c)


@st.composite
def specs_with_stable_start(draw: st.DrawFn) -> AbcSpec:
    """Specs whose initial network is as Theorem 3.3 wants it, so that every regime occurs."""
    depth = draw(st.integers(1, 3))
    a = draw(st.lists(quarters, min_size=depth + 1, max_size=depth + 1))
    init = [F(0)] + [HALF] * (depth - 1) + [draw(st.sampled_from([HALF, F(3, 4), F(1), F(5, 4), INF]))]
    c = draw(st.lists(quarters, min_size=depth + 1, max_size=depth + 1))
    return abc_spec(a, [size - x for size, x in zip(init, a, strict=True)], c)


any_spec = st.one_of(any_specs(), specs_with_stable_start())


def paper_r(spec: AbcSpec, indicator: bool = True, readout_moves: bool = True) -> list[F | float]:
    """Definition 3.2 as printed (one c for all layers), with switches for two ways of getting it wrong."""
    (c,) = set(spec.c)
    a, b = spec.a, spec.b
    readout = min(a[-1] + b[-1], 2 * a[-1] + c) if readout_moves else a[-1] + b[-1]
    return [readout + c - 1 + 2 * a[i] + (1 if indicator and i == 0 else 0) for i in range(spec.L)]


# Table 1 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "L", "r_layers", "f0"),
    [
        ("sp", 1, [F(3, 2)], 0),
        ("sp", 2, [F(3, 2), HALF], 0),
        ("sp", 4, [F(3, 2), HALF, HALF, HALF], 0),
        ("ntp", 1, [HALF], 0),
        ("ntp", 3, [HALF] * 3, 0),
        ("mfp", 1, [0], -HALF),
        ("mup", 1, [0], -HALF),
        ("mup", 3, [0] * 3, -HALF),
        ("up:1/4", 1, [F(1, 4)], -F(1, 4)),
        ("up:1/4", 3, [F(1, 4)] * 3, -F(1, 4)),
    ],
)
def test_table_1(name: str, L: int, r_layers: list[F], f0: F) -> None:
    spec = parse(name, L)
    assert list(spec.r_layers()) == r_layers == paper_r(spec)
    assert spec.r() == spec.r_first_step() == min(r_layers)
    assert spec.stable
    assert spec.nontrivial
    assert spec.regime() == ("feature" if spec.r() == 0 else "kernel")
    assert spec.predicted_exponent("f0") == f0
    assert spec.predicted_exponent("df", t=3) == 0


@pytest.mark.parametrize("L", [1, 2, 3])
def test_uniform_joins_maximal_update_to_neural_tangent(L: int) -> None:
    assert uniform(L, 0) == maximal_update(L)
    assert uniform(L, HALF) == neural_tangent(L)


def test_mean_field_is_maximal_update_shifted_by_minus_one_half() -> None:
    assert mean_field().shift(F(-1, 2)) == mean_field().canonical() == maximal_update(1)


@pytest.mark.parametrize("L", [2, 3])
def test_maximal_update_saturates_every_condition(L: int) -> None:
    spec = maximal_update(L)
    assert set(spec.r_layers()) == {0}
    assert spec.rate_exponents()[-1] == 1
    assert spec.init_exponents()[-1] + spec.r() == 1
    contributions = [spec.predicted_exponent("dWx", layer) for layer in range(1, L + 1)]
    assert {*contributions, spec.predicted_exponent("dWx_out"), spec.predicted_exponent("W0dx_out")} == {0}


def test_forgetting_the_indicator_of_the_first_layer_is_seen() -> None:
    wrong = paper_r(maximal_update(2), indicator=False)
    assert wrong == [-1, 0]
    assert wrong != list(maximal_update(2).r_layers())


def test_forgetting_that_the_readout_moves_is_seen() -> None:
    spec = parse("mup-zero-readout", 2)
    assert paper_r(spec, readout_moves=False) == [INF, INF]
    assert list(spec.r_layers()) == [0, 0] == paper_r(spec)
    assert spec.regime() == "feature"


# The symmetry -----------------------------------------------------------------------------------------------------


@given(any_spec, st.data())
def test_the_symmetry_changes_nothing_that_can_be_seen(spec: AbcSpec, data: st.DataObject) -> None:
    one = data.draw(quarters)
    many = data.draw(st.lists(quarters, min_size=spec.L + 1, max_size=spec.L + 1))
    for other in (spec.shift(one), spec.shift(many), spec.canonical()):
        assert other.regime() == spec.regime()
        assert other.r_layers() == spec.r_layers()
        assert other.r_first_step() == spec.r_first_step()
        assert len(other.stability()) == len(spec.stability())
        assert other.canonical() == spec.canonical()
    assert spec.shift(one).shift(-one) == spec
    assert set(spec.canonical().c) == {0}


@given(any_spec)
def test_a_rate_per_layer_reduces_to_the_papers_conditions(spec: AbcSpec) -> None:
    """The canonical form has one c, for which Theorems 3.3 and 3.4 are printed."""
    plain = spec.canonical()
    a, b, c = plain.a, plain.b, plain.c[0]
    r = min(paper_r(plain))
    good_start = a[0] + b[0] == 0 and all(a[i] + b[i] == HALF for i in range(1, plain.L)) and a[-1] + b[-1] >= HALF
    stable = good_start and r >= 0 and 2 * a[-1] + c >= 1 and a[-1] + b[-1] + r >= 1
    nontrivial = stable and (a[-1] + b[-1] + r == 1 or 2 * a[-1] + c == 1)
    assert (spec.stable, spec.nontrivial) == (stable, nontrivial)
    assert list(spec.r_layers()) == paper_r(plain)


@given(specs_with_stable_start())
def test_stable_means_that_nothing_grows(spec: AbcSpec) -> None:
    hidden = [(q, layer) for q in ("h0", "dh", "dx", "dWx", "feature_kernel") for layer in range(1, spec.L + 1)]
    output = [(q, None) for q in ("f0", "dWx_out", "W0dx_out", "df", "kernel_residual", "ntk_change")]
    if not spec.stable:
        with pytest.raises(ValueError, match="unstable"):
            spec.predicted_exponent("df", t=2)
        return
    for t in (1, 2, 5):
        assert all(spec.predicted_exponent(q, layer, t) <= 0 for q, layer in hidden + output)
        if spec.rate_exponents()[-1] == 1:
            assert spec.predicted_exponent("df", t=t) == 0
    assert (spec.predicted_exponent("df", t=2) == 0) == spec.nontrivial
    if spec.nontrivial:  # the dichotomy of Corollary 3.9, on the exponents that are measured
        evolves = spec.predicted_exponent("feature_kernel", t=2) == 0
        assert evolves == (spec.regime() == "feature") == (spec.predicted_exponent("kernel_residual", t=2) == 0)
        assert spec.predicted_exponent("ntk_change", t=2) == spec.predicted_exponent("kernel_residual", t=2)
        if spec.regime() == "feature":  # Corollary 3.10
            assert spec.predicted_exponent("f0") < 0


@given(specs_with_stable_start())
def test_first_step_r_differs_only_where_the_readout_outgrows_its_start(spec: AbcSpec) -> None:
    grows = spec.init_exponents()[-1] > spec.rate_exponents()[-1]
    assert (spec.r_first_step() > spec.r()) == grows
    assert spec.r_first_step() >= spec.r()


# Predicted exponents ----------------------------------------------------------------------------------------------


def test_standard_parametrization_layer_by_layer() -> None:
    spec = standard(2)
    assert [spec.predicted_exponent("dh", layer) for layer in (1, 2)] == [-F(3, 2), -HALF]
    assert [spec.predicted_exponent("dWx", layer) for layer in (1, 2)] == [-F(3, 2), -HALF]
    assert standard(1).predicted_exponent("feature_kernel") == standard(1).predicted_exponent("ntk_change") == -2
    assert standard(1).predicted_exponent("W0dx_out") == -1
    assert standard(1).predicted_exponent("df") == 0


@pytest.mark.parametrize("r", [F(0), F(1, 8), F(1, 4), F(3, 8), HALF])
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("t", [1, 4])
def test_uniform_family(L: int, r: F, t: int) -> None:
    spec = uniform(L, r)
    for layer in range(1, L + 1):
        assert spec.predicted_exponent("dh", layer, t) == spec.predicted_exponent("dx", layer, t) == -r
        assert spec.predicted_exponent("feature_kernel", layer, t) == -2 * r
    assert spec.predicted_exponent("kernel_residual", t=t) == spec.predicted_exponent("ntk_change", t=t) == -2 * r
    assert spec.predicted_exponent("W0dx_out", t=t) == spec.predicted_exponent("dWx_out", t=t) == 0


def test_flat_input_layer_stops_moving_and_only_it() -> None:
    spec = parse("mup-flat-input", 3)
    assert list(spec.r_layers()) == [1, 0, 0]
    assert spec.regime() == "feature"
    assert [spec.predicted_exponent("dh", layer, 2) for layer in (1, 2, 3)] == [-1, 0, 0]


def test_zero_readout_waits_one_step() -> None:
    spec = parse("mup-zero-readout", 2)
    assert spec.r_first_step() == INF
    assert spec.predicted_exponent("f0") == -INF
    for layer in (1, 2):
        assert spec.predicted_exponent("dh", layer, t=1) == -INF
        assert spec.predicted_exponent("dh", layer, t=2) == 0
    assert spec.predicted_exponent("df", t=1) == spec.predicted_exponent("dWx_out", t=1) == 0
    assert spec.predicted_exponent("W0dx_out", t=2) == -INF
    assert spec.predicted_exponent("kernel_residual", t=1) == -INF
    assert spec.predicted_exponent("ntk_change", t=1) == 0  # the part of the hidden layers appears with the readout


def test_features_moved_through_the_readouts_own_change_are_not_zero_mean() -> None:
    """Zero readout and r = 1/4: the kernel changes by n^{-r}, not n^{-2r}."""
    assert SLOW_ZERO_READOUT.r() == F(1, 4)
    assert SLOW_ZERO_READOUT.predicted_exponent("feature_kernel", t=2) == -F(1, 4)
    assert uniform(1, "1/4").predicted_exponent("feature_kernel", t=2) == -HALF


def test_the_initial_readout_correlates_only_with_what_was_moved_through_it() -> None:
    assert SMALL_READOUT.r() == 0
    assert SMALL_READOUT.r_first_step() == F(1, 4)
    assert SMALL_READOUT.predicted_exponent("W0dx_out", t=1) == SMALL_READOUT.predicted_exponent("W0dx_out", t=2)
    assert SMALL_READOUT.predicted_exponent("W0dx_out", t=2) == -HALF  # and not 1 - A - r = -1/4


def test_a_lower_layer_sees_the_layers_above_it_move_from_the_second_step_on() -> None:
    spec = abc_spec([0, 0, 1], [0, HALF, 0])
    assert spec.r_layers() == (1, 0)
    assert [spec.predicted_exponent("feature_kernel", 1, t) for t in (1, 2)] == [-F(3, 2), -1]


@pytest.mark.parametrize("L", [1, 2, 3])
@pytest.mark.parametrize("c", [HALF, F(5, 8), F(3, 4), F(1)])
def test_one_step_of_the_standard_parametrization(L: int, c: F) -> None:
    spec = standard(L, c)
    assert spec.stable == (c == 1)
    assert spec.predicted_exponent("df", t=1) == standard_first_step_exponent(c) == 1 - c
    assert spec.predicted_exponent("dh", 1, t=1) == -c - HALF
    if L > 1:
        assert spec.predicted_exponent("dh", 2, t=1) == HALF - c


@pytest.mark.parametrize("c", ["1/4", "5/4", 0])
def test_one_step_law_outside_its_domain(c: str) -> None:
    with pytest.raises(ValueError, match=r"1/2 <= c <= 1"):
        standard_first_step_exponent(c)


def test_unstable_specs_predict_nothing_but_their_start() -> None:
    with pytest.raises(ValueError, match=r"unstable parametrization at t = 1: r = -1 must be at least 0"):
        standard(2, 0).predicted_exponent("df", t=1)
    with pytest.raises(ValueError, match=r"at t = 2: 2 a_3 \+ c_3 = 3/4 must be at least 1"):
        standard(2, "3/4").predicted_exponent("df", t=2)
    large = parse("mup-large-readout", 2)
    assert large.regime() == "unstable"
    assert large.predicted_exponent("f0") == large.predicted_exponent("h0", 1) == 0
    with pytest.raises(ValueError, match="unstable"):
        large.predicted_exponent("dh", 2)


def test_violated_conditions_are_named() -> None:
    assert parse("mup-large-readout", 2).stability() == (
        "r = -1/2 must be at least 0: features blow up",
        "a_3 + b_3 + r = 0 must be at least 1: moved features blow up the output",
    )
    assert abc_spec([0, 0, 0], [1, 0, 0], 1).stability()[:3] == (
        "a_1 + b_1 = 1 must be 0: h_0^1 is not Θ(1)",
        "a_2 + b_2 = 0 must be 1/2: h_0^2 is not Θ(1)",
        "a_3 + b_3 = 0 must be at least 1/2: the initial output blows up",
    )


def test_trivial_regime() -> None:
    assert standard(2, 2).regime() == "trivial"
    assert standard(2, 2).predicted_exponent("df", t=3) == -1


# Names and bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES + CONTROLS)
def test_every_name_has_a_label_and_a_valid_spec(name: str) -> None:
    assert parse(name, 1).L == 1
    assert label(name)
    if name != "mfp":
        assert parse(name, 3).L == 3


def test_labels() -> None:
    assert label("mup") == "μP"
    assert label("sp") == "SP, c = 1"
    assert label("sp:3/4") == "SP, c = 3/4"
    assert label("up:1/4") == "UP(r = 1/4)"
    assert len({label(name) for name in NAMES + CONTROLS}) == len(NAMES + CONTROLS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mupp", "unknown parametrization 'mupp'; nearest: 'mup'"),
        ("NTK", "unknown parametrization 'NTK'; nearest: 'ntp'"),
        ("mup-zero-readuot", "nearest: 'mup-zero-readout'"),
        ("", "unknown parametrization ''"),
        ("up", "'up' needs its r, as in 'up:1/4'"),
        ("up:", "up: = '' is not an exact number"),
        ("up:3/4", r"r = 3/4 must lie in \[0, 1/2\]"),
        ("sp:1/0", "sp:1/0 = '1/0' is not an exact number"),
        ("sp:fast", "sp:fast = 'fast' is not an exact number"),
        ("mup:1/2", "'mup' takes no argument"),
        ("mfp", "L = 2: the mean field parametrization"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(name, 2)


@pytest.mark.parametrize(
    ("a", "b", "c", "sigma", "message"),
    [
        ([0, 0], [0, 0, 0], 0, 1.0, "one entry per layer"),
        ([0], [0], 0, 1.0, r"a network needs a hidden layer and a readout, got 1 layer\(s\)"),
        ([0, 0.5], [0, 0], 0, 1.0, "a_2 = 0.5 is not an exact number"),
        ([0, 0], [0, math.nan], 0, 1.0, "b_2 = nan is not an exact number"),
        ([0, INF], [0, 0], 0, 1.0, "a_2 = inf is not an exact number"),
        ([0, 0], [INF, 0], 0, 1.0, r"b_1 = inf: only the readout b_2 may start at zero"),
        ([0, 0], [0, 0], [0, True], 1.0, "c_2 = True is not an exact number"),
        ([0, 0], [0, 0], [0, 0, 0], 1.0, "one entry per layer"),
        ([0, 0], [0, 0], 0, 0.0, "sigma_1 = 0.0 must be positive and finite"),
        ([0, 0], [0, 0], 0, [1.0], "one entry per layer"),
    ],
)
def test_bad_exponents(a: list, b: list, c: object, sigma: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        abc_spec(a, b, c, sigma)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("quantity", "layer", "t", "message"),
    [
        ("dhh", 1, 1, "unknown quantity 'dhh'; nearest: 'dh'"),
        ("dh", None, 1, r"'dh' needs a hidden layer in 1..2, not None"),
        ("dh", 3, 1, r"'dh' needs a hidden layer in 1..2, not 3"),
        ("df", 1, 1, "'df' is of the output: layer must be None or 3, not 1"),
        ("df", None, 0, "t = 0"),
    ],
)
def test_bad_questions(quantity: str, layer: int | None, t: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maximal_update(2).predicted_exponent(quantity, layer, t)


def test_bad_shift_and_depth() -> None:
    with pytest.raises(ValueError, match="theta has 2 entries, the network has 3 layers"):
        maximal_update(2).shift([0, 1])
    with pytest.raises(ValueError, match="L = 0: a network needs at least one hidden layer"):
        maximal_update(0)


def test_importing_the_specs_is_cheap() -> None:
    code = "import sys, theory.abc.spec; print({'torch', 'numpy', 'scipy', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
