"""The paper's claims, each with the data that decides it and the controls that must fail.

Thresholds. Exponents must lie within ±0.10 of theory (±0.20 for learning rates, which are read off a grid). Where the
paper only says that an exponent is zero or negative, or positive or not, the line between the two is drawn at 0.10
from zero, and `side` turns "on the theorem's side of the line" into one slope that must not be positive.
"""

from __future__ import annotations

import math

from assay import Bound, Claim, Control, Equality, Gate, Proportion, Slope
from studies.width.frames import (
    LINE,
    NETWORK,
    STABLE,
    best_rates,
    constant,
    contributions,
    dichotomy,
    effect,
    fastest,
    feature_learning,
    follows,
    identity,
    kernel_errors,
    nonlinearity,
    nontrivial,
    only,
    same_as,
    side,
    stable_rates,
    told,
    unstable,
    wrong_r,
)  # fmt: skip
from studies.width.parametrizations import BAD_INIT, CONTROLS, FAST_SP, INTERPOLATION, PLANE, TABLE_1, TRIVIAL, spec_of
from studies.width.trials import LINEAR_NETWORK

AGREES = Slope(0.0, band=(math.inf, 0.0))
LARGE_ENOUGH = Gate("features move by at least 0.1 where r = 0", effect, Bound(lower=0.1), cases=NETWORK)
NONLINEAR = Gate(
    "the network is not linear in what is trained (Assumption 3.1)",
    nonlinearity("tanh"),
    Bound(lower=1e-6, every_row=True),
)
LINEAR = Gate(NONLINEAR.name, nonlinearity(LINEAR_NETWORK), NONLINEAR.kind)
WRONG_YARDSTICKS = (
    Control(
        "features judged by the movement of the output",
        lambda tables: dichotomy(tables, features="df"),
        why="f moves by Θ(1) in both regimes",
    ),
    Control(
        "kernel regime judged by the movement of the output",
        lambda tables: dichotomy(tables, kernel="df"),
        why="a kernel method moves its output too",
    ),
    Control(
        "features judged by the size of the activations",
        lambda tables: dichotomy(tables, features="h0"),
        why="|h| instead of Δh looks alike in both regimes",
    ),
)

CLAIMS = (
    Claim(
        "ABC-1",
        "a_l + θ, b_l − θ and c − 2θ leave f_t unchanged for all t",
        "Sec. 3.2, Eq. (5)",
        Equality(1e-9, every_row=True),
        lambda tables: tables["symmetry"][tables["symmetry"]["variant"].isin(("global", "per layer"))].rename(
            columns={"difference": "value"}
        ),
        (
            Control("learning rate left as it was", identity("c kept"), why="the shift without c − 2θ"),
            Control(
                "learning rate applied to W, not to w",
                identity("rate on W"),
                why="a frequent bug: c acts as if 2a were added",
            ),
        ),
        cases=("depth", "variant"),
        note="Largest relative difference of f on the probes over five steps, in double precision, from the same "
        "normal draws, for rational θ drawn at random.",
    ),
    Claim(
        "ABC-2",
        "No activation, output or update grows with n exactly when a_1 + b_1 = 0, a_l + b_l = 1/2 (2 ≤ l ≤ L), "
        "a_{L+1} + b_{L+1} ≥ 1/2, r ≥ 0, 2a_{L+1} + c ≥ 1 and a_{L+1} + b_{L+1} + r ≥ 1",
        "Theorem 3.3",
        AGREES,
        lambda tables: side(fastest(tables, (*STABLE, *FAST_SP, *CONTROLS[1:], *BAD_INIT, *PLANE)), unstable, LINE),
        (
            Control(
                "readout condition forgotten",
                lambda tables: side(fastest(tables, ("mup-large-readout",)), lambda *_: False, LINE),
                why="calls μP with b_{L+1} = 0 stable",
            ),
            Control(
                "learning-rate condition forgotten",
                lambda tables: side(fastest(tables, ("sp:1/2",)), lambda *_: False, LINE),
                why="calls SP with learning rate n^(-1/2) stable",
            ),
            Control(
                "NTP called unstable",
                lambda tables: side(fastest(tables, ("ntp",)), lambda *_: True, LINE),
                why="the other side of the line",
            ),
        ),
        cases=NETWORK,
        note="Judged on whichever of h_0, f_0, Δh and Δf grows fastest over two steps: the number is how far its exponent "
        f"lies on the wrong side of {LINE}, so agreement with the theorem is negative. The theorem also excludes initial "
        "activations that vanish, which is not tried. The undecided case is A = 7/8, ρ = 0, whose features saturate φ and "
        "which by theory grows as n^(1/8) only, too close to the line for these widths.",
    ),
    Claim(
        "ABC-3",
        "A stable parametrization moves its function by Θ(1) exactly when a_{L+1} + b_{L+1} + r = 1 or 2a_{L+1} + c = 1",
        "Theorem 3.4",
        Slope(),
        follows("df", 1, STABLE),
        (
            Control(
                "trivial points called nontrivial",
                told("df", 1, TRIVIAL, constant(0.0)),
                why="exponent 0 where theory says −1/2",
            ),
            Control(
                "nontrivial points called trivial",
                told("df", 1, TABLE_1, constant(-0.5)),
                why="exponent −1/2 where theory says 0",
            ),
        ),
        cases=NETWORK,
        note="Exponent of Δf after one step: 0 where the theorem says nontrivial, theory's negative value elsewhere.",
    ),
    Claim(
        "ABC-4",
        "Layer by layer, Δh^l is Θ(n^(−min_{k≤l} r_k))",
        "Definition 3.2; layer by layer from the heuristic of Proposition 5.3",
        Slope(),
        follows("dh", (1, 2), STABLE),
        (
            Control(
                "μP's law told of NTP", told("dh", 1, ("ntp",), same_as("mup", "dh")), why="0 where theory says −1/2"
            ),
            Control(
                "NTP's law told of μP", told("dh", 1, ("mup",), same_as("ntp", "dh")), why="−1/2 where theory says 0"
            ),
            Control("indicator 1[l = 1] forgotten", told("dh", 1, ("mup",), wrong_r), why="r_1 = −1 for μP"),
            Control(
                "one exponent for all layers",
                told("dh", 1, ("mup-flat-input",), same_as("mup", "dh")),
                why="μP with the input layer of SP passes wherever only the last layer is looked at",
            ),
        ),
        cases=(*NETWORK, "layer", "t"),
    ),
    Claim(
        "ABC-5",
        "A nontrivial stable parametrization learns features, and its feature kernel evolves, exactly when r = 0",
        "Theorem 3.6",
        AGREES,
        lambda tables: side(nontrivial(tables, "feature_kernel"), feature_learning, -LINE),
        (
            Control(
                "NTP said to learn features",
                lambda t: side(only(nontrivial(t, "feature_kernel"), "ntp"), lambda *_: True, -LINE),
            ),
            Control(
                "μP said not to", lambda t: side(only(nontrivial(t, "feature_kernel"), "mup"), lambda *_: False, -LINE)
            ),
            Control(
                "second entry of the min in r forgotten",
                lambda t: side(only(nontrivial(t, "feature_kernel"), "mup-zero-readout"), lambda *_: False, -LINE),
                why="a readout that starts from zero would give r = ∞",
            ),
        ),
        cases=NETWORK,
        gates=(LARGE_ENOUGH,),
        note="Exponent of the relative change of F = x^L·x^L/n after four steps, as a distance to −0.10 on the wrong side.",
    ),
    Claim(
        "ABC-6",
        "A nontrivial stable parametrization is in the kernel regime exactly when r > 0: "
        "‖Δf − J_0 δθ‖ / ‖Δf‖ vanishes with n",
        "Theorem 3.8",
        AGREES,
        lambda tables: side(nontrivial(tables, "kernel_residual"), feature_learning, -LINE),
        (
            Control(
                "μP said to be a kernel method",
                lambda t: side(only(nontrivial(t, "kernel_residual"), "mup"), lambda *_: False, -LINE),
            ),
            Control(
                "NTP said not to be",
                lambda t: side(only(nontrivial(t, "kernel_residual"), "ntp"), lambda *_: True, -LINE),
            ),
        ),
        cases=NETWORK,
        gates=(LARGE_ENOUGH,),
        note="After four steps, as a distance to −0.10 on the wrong side.",
    ),
    Claim(
        "ABC-6K",
        "In the kernel regime f_t follows kernel gradient descent with the infinite-width NTK, to within n^(−1/2)",
        "Theorem 3.8, with the rate of the fluctuations of the NTK at initialisation (derived)",
        Slope(-0.5),
        kernel_errors("ntk", "ntp"),
        (
            Control("NNGP kernel in its place", kernel_errors("nngp", "ntp"), why="trains the readout alone"),
            Control("μP said to follow it", kernel_errors("ntk", "mup"), why="μP's kernel moves"),
        ),
        note="Relative distance on the probes after the last step, each network's own f_0 put in.",
    ),
    Claim(
        "ABC-7",
        "A nontrivial stable parametrization learns features or is in the kernel regime, never both and never neither",
        "Corollary 3.9",
        Proportion(at_least=0.8),
        dichotomy,
        WRONG_YARDSTICKS,
        gates=(LARGE_ENOUGH, NONLINEAR),
        note="Share of networks and seeds in exactly one regime, by exponents fitted per seed and a line at −0.10; what "
        "falls on the wrong side has a small r, whose exponents are still in crossover at these widths.",
    ),
    Claim(
        "ABC-7L",
        "The dichotomy needs a nonlinear φ: with φ = id and only W^1 trained it cannot be judged",
        "Assumption 3.1 and the counter-example after Corollary 3.9",
        Proportion(at_least=0.8),
        lambda tables: dichotomy(tables, LINEAR_NETWORK),
        WRONG_YARDSTICKS,
        gates=(LINEAR,),
        expect="void",
        note="The gate measures how far μP is from its linearisation, here zero up to rounding. Without it the dichotomy "
        "would count as refuted, which says nothing about the theorem. The controls are those of ABC-7, on its networks.",
    ),
    Claim(
        "ABC-8",
        "f_0 is Θ(n^(1/2 − (a_{L+1} + b_{L+1}))): a feature-learning limit starts from zero",
        "Corollary 3.10",
        Slope(),
        follows("f0", 1, STABLE),
        (
            Control("NTP said to start from zero", told("f0", 1, ("ntp",), same_as("mup", "f0"))),
            Control("μP with a large readout said to", told("f0", 1, ("mup-large-readout",), same_as("mup", "f0"))),
        ),
        cases=NETWORK,
    ),
    Claim(
        "ABC-9",
        "SP with learning rate η n^(−c), 1/2 ≤ c ≤ 1: Δf_1 is Θ(n^(1−c)), so only O(1/n) is stable",
        "Theorem 4.1, Eq. (12)-(13)",
        Slope(),
        follows("df", 1, ("sp", *FAST_SP)),
        (
            Control("every rate said to be stable", told("df", 1, FAST_SP, constant(0.0))),
            Control("half the growth", told("df", 1, ("sp:1/2",), constant(0.25)), why="n^((1−c)/2)"),
        ),
        cases=NETWORK,
    ),
    Claim(
        "ABC-9R",
        "The largest stable learning rate falls as 1/n in SP and does not move with n in NTP and μP",
        "Sec. 4, Fig. 2 (SP and μP); derived from Theorem 3.3 for NTP",
        Slope(band=0.20),
        stable_rates({"sp:0": -1.0, "ntp": 0.0, "mup": 0.0}),
        (
            Control("SP said to fall as n^(−1/2)", stable_rates({"sp:0": -0.5})),
            Control("SP said to have NTP's rate", stable_rates({"sp:0": 0.0})),
            Control("μP said to have SP's rate", stable_rates({"mup": -1.0})),
        ),
        cases=("parametrization",),
        note="Two hidden layers, φ = relu, squared loss, 12 steps, bisection on log2 η. Narrow NTP networks stand a larger "
        "rate than their kernel limit, which the figure shows; the fitted slope is too steep until it is reached. SP, the "
        "same kernel method without its first layer, behaves alike.",
    ),
    Claim(
        "ABC-10",
        "In μP every layer's own update moves its output by Θ(1), and so do the readout's update and the moved features",
        "Definitions 5.1, 5.2, 5.4, Propositions 5.3, 5.5, Theorem 5.6",
        Slope(0.0),
        lambda tables: contributions(tables, "mup"),
        (
            Control("NTP said to be maximal", lambda tables: contributions(tables, "ntp")),
            Control("μP with the input layer of SP said to be", lambda tables: contributions(tables, "mup-flat-input")),
            Control("μP with a large readout said to be", lambda tables: contributions(tables, "mup-large-readout")),
        ),
        cases=("depth", "quantity", "layer"),
        note="Isolated contributions ΔW^l x^{l−1}, ΔW^{L+1} x^L and W_0^{L+1} Δx^L after two steps. That μP is the only such "
        "point is not tested beyond the controls.",
    ),
    Claim(
        "ABC-11",
        "With one hidden layer the mean-field parametrization is μP",
        "Sec. 5",
        Equality(1e-9, every_row=True),
        identity("mfp is mup"),
        (
            Control("NTP in its place", identity("ntp is mup")),
            Control("mean field with c = 0", identity("slow mfp is mup"), why="its learning rate must grow with n"),
        ),
    ),
    Claim(
        "ABC-17",
        "UP(r) joins μP to NTP with all layers moving alike: Δh^l is Θ(n^(−r)) for every l",
        "derived from Definition 3.2; not stated in the paper",
        Slope(),
        follows("dh", 1, ("mup", *INTERPOLATION, "ntp")),
        (
            Control(
                "no dependence on r",
                told("dh", 1, INTERPOLATION[1:], constant(0.0)),
                why="r = 1/8 is left out: it lies near the edge of the band around 0",
            ),
            Control(
                "twice the exponent", told("dh", 1, INTERPOLATION, lambda name, *_: -2 * float(spec_of(name, 1).r()))
            ),
        ),
        cases=(*NETWORK, "layer"),
    ),
    Claim(
        "ABC-LR",
        "In μP the learning rate that trains best does not move with the width",
        "consequence of Theorem 5.6 (derived; what μTransfer relies on)",
        Slope(band=0.20),
        best_rates({"mup": 0.0}),
        (
            Control("SP said to transfer", best_rates({"sp:0": 0.0})),
            Control("μP said to need 1/n", best_rates({"mup": -1.0})),
        ),
        cases=("loss_function", "parametrization"),
        note="Two hidden layers, φ = relu, squared loss and cross entropy on digits, 100 steps; the optimum of each seed "
        "between grid points.",
    ),
    Claim(
        "ABC-LRK",
        "The learning rate that trains best moves as the largest stable one: as 1/n in SP, not at all in NTP",
        "consequence of Theorem 4.1 (derived)",
        Slope(band=0.20),
        best_rates({"sp:0": -1.0, "ntp": 0.0}),
        (
            Control("SP said to transfer", best_rates({"sp:0": 0.0})),
            Control("NTP said to need 1/n", best_rates({"ntp": -1.0})),
        ),
        cases=("loss_function", "parametrization"),
        note="Stability in the theorem means bounded outputs. Cross entropy does not need them: its derivative stays bounded "
        "when logits grow, so training goes on up to the rate at which the features blow up, n^(−1/2) in SP and n^(1/2) in "
        "NTP (r = 0 in both). SP follows that rate; NTP's optimum rises faster still at these widths. Under the squared "
        "loss NTP agrees, and SP's optimum is too ragged at the edge of stability to tell.",
    ),
)
