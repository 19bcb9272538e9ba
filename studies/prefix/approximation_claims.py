"""What is claimed of NTK-Attention as a stand-in for a prefix, how each claim is judged, and the controls that must fail."""

from __future__ import annotations

import math

from assay import Bound, Claim, Control, Equality, Ordering, Slope
from studies.prefix.approximation_frames import (
    affine,
    against,
    bounded,
    fits,
    fixed,
    growing,
    held,
    leaks,
    operations,
    parameters,
    parities,
    steps,
    timed,
)

PAPER = "Liang et al. 2024"
FALLS = Slope(-0.1, band=(math.inf, 0.0))
"""1/poly(m): any power, but at least m^(-0.1)."""
FITTED = 0.10
"""Largest error of a fit, over what the prefix changes."""
SETTING = ("map", "spread")
OURS = "our test"

ERRORS = (
    Claim(
        "NTK-5a",
        "With logits up to 1.5 the error of a Taylor map falls by a factor of at least 2 with every degree",
        f"{PAPER}, error of NTK-Attention; Alman & Song 2023, polynomial method",
        Ordering("less", margin=math.log(2), log=True),
        steps(),
        (
            Control("both sides divided by the root of d too often", steps(arm="wrong scale")),
            Control("Z without the values", steps(arm="keys only")),
            Control("centred Gaussian prefixes", steps("gaussian"), why="there odd degrees are better than even ones"),
            Control("degrees exchanged", steps(swapped=True)),
        ),
        cases=("spread", "m", "degree"),
        note="Largest error of any entry, shifted prefixes with tied keys and values, degree g against g - 1.",
    ),
    Claim(
        "NTK-5b",
        "The error is at most 2 rho s / (1 - rho s) max|v| in every cell, rho the largest relative error of p_g",
        "our explicit form of the bound behind Liang et al. 2024, error of NTK-Attention",
        Bound(upper=0.0, every_row=True),
        bounded(),
        (
            Control("ELU+1 held to the bound of degree 3", bounded(held=3, maps="ELU")),
            Control("both sides divided by the root of d too often", bounded("wrong scale")),
            Control("Z without the values", bounded("keys only")),
        ),
        cases=("kind", "spread"),
        note="s is the largest share of the prefix in the softmax, max|v| runs over the prefix and the input. Cells with "
        "rho s >= 1, where there is no bound, are left out.",
    ),
    Claim(
        "NTK-5c",
        "With a fixed feature map the error on a shifted prefix falls as a power of its length",
        f"{PAPER}, error of NTK-Attention read at a fixed map: at most 1/poly(m)",
        FALLS,
        fixed("shifted"),
        (
            Control("the constant map", fixed("shifted", ("degree 0",))),
            Control("both sides divided by the root of d too often", fixed("shifted", arm="wrong scale")),
            Control("Z without the values", fixed("shifted", arm="keys only")),
        ),
        cases=SETTING,
        expect="refuted",
        note="Taylor maps of degree 1 to 3, ELU+1, and d^2 positive random features; supported where the slope against m is "
        "at most -0.1. The error has a floor that depends on the map and the logits, not on m; the theorem lets the degree grow. "
        "ELU+1 gives a prefix too large a share, which matters less as m grows: it falls to the error of a constant map.",
    ),
    Claim(
        "NTK-5g",
        "With logits up to 1.5 and one degree more for every factor of 16 in m the error on shifted prefixes falls, at least "
        "as m^(-1/4)",
        "follows from NTK-5a: log 2 for every log 16",
        Slope(-0.25, band=(math.inf, 0.0)),
        growing(),
        (
            Control("degree 1 throughout", fixed("shifted", ("degree 1",))),
            Control("both sides divided by the root of d too often", growing("wrong scale")),
            Control("degrees in reverse order", growing(reverse=True)),
        ),
        cases=("spread",),
        note="The law that does hold: degree ceil(log2(m) / 4).",
    ),
    Claim(
        "NTK-5v",
        "Where values are independent of keys the error falls as a power of the length",
        f"{PAPER}, error of NTK-Attention, on random keys and values",
        FALLS,
        fixed("iid values"),
        (
            Control("the constant map", fixed("iid values", ("degree 0",)), trivial=True, why="values average out"),
            Control("shifted prefixes", fixed("shifted")),
            Control("Z without the values", fixed("iid values", arm="keys only")),
        ),
        cases=SETTING,
        expect="void",
        note="True and empty: a map that ignores the logits does it too, so such data says nothing of an approximation.",
    ),
    Claim(
        "NTK-5e",
        "Folded from a given prefix, ELU+1 is nearer to exact prefix attention than a map that ignores the logits",
        OURS,
        Ordering("less", log=True),
        against("ELU+1"),
        (
            Control("Z without the values", against("ELU+1", arm="keys only")),
            Control("said to be nearer than (1, x)", against("ELU+1", "degree 1")),
        ),
        cases=("spread", "m"),
        expect="refuted",
        note="Shifted prefixes. The paper trains the (Z, kappa) of this map from zeros or noise and does not claim this.",
    ),
    Claim(
        "NTK-5k",
        "Folded from a given prefix, ELU+1 divided by the root of d, right at logits of 0, is nearer to exact prefix "
        "attention than a map that ignores the logits",
        OURS,
        Ordering("less", log=True),
        against("ELU+1 calibrated"),
        (
            Control("Z without the values", against("ELU+1 calibrated", arm="keys only")),
            Control("said to be nearer than (1, x)", against("ELU+1 calibrated", "degree 1")),
        ),
        cases=("spread", "m"),
        expect="refuted",
        note="Shifted prefixes. The division gives a prefix the share of the softmax that it has at logits of 0.",
    ),
    Claim(
        "NTK-5p",
        "On centred Gaussian prefixes the output is E[p_{g-1}(t)] / E[p_g(t)] times the exact one: exact for odd degrees",
        "our derivation by Stein's lemma",
        Equality(0.05),
        parities(),
        (
            Control("said to be exact for every degree", parities(lambda g, v: 1.0)),
            Control("odd and even degrees exchanged", parities(lambda g, v: 1.0 if g % 2 == 0 else 1 / (1 + v / 2))),
        ),
        cases=("variance", "degree"),
        note="Why centred Gaussian prefixes cannot tell degrees apart: degree 1 beats degree 2 on them.",
    ),
)

COSTS = (
    Claim(
        "NTK-6f",
        "NTK-Attention takes 4 L^2 d + 2 L r d + 2 L r operations whatever the length of the prefix, exact attention "
        "4 L (L + m) d",
        f"{PAPER}, abstract and appendix on complexity",
        Equality(0.0, every_row=True),
        operations({"folded": "folded", "exact": "exact"}),
        (
            Control("Z rebuilt from the prefix at every call", operations({"rebuilt": "folded"})),
            Control("without the product with kappa", operations({"folded": "folded"}, kappa=False)),
            Control("exact attention said to be independent of m", operations({"exact": "folded"})),
        ),
        unit=("m",),
        cases=("arm", "tokens", "d"),
        note="Counted on explicit matrix products; r = d.",
    ),
    Claim(
        "NTK-6b",
        "The memory of NTK-Attention does not depend on the length of the prefix",
        f"{PAPER}, abstract: O(r d + r) in the place of O(m d)",
        Equality(0.0, every_row=True),
        held("folded"),
        (
            Control("Z rebuilt from the prefix at every call", held("rebuilt")),
            Control("exact prefix attention", held("exact")),
        ),
        unit=("m",),
        cases=("tokens", "d"),
        note="A check of the code: what a forward is given does not contain the prefix. Most bytes of tensors alive at once, "
        "inputs included, against those at the shortest prefix.",
    ),
    Claim(
        "NTK-6w",
        "The time of NTK-Attention does not depend on the length of the prefix",
        f"{PAPER}, abstract and appendix on complexity",
        Slope(0.0, band=0.1),
        timed("folded"),
        (
            Control("Z rebuilt from the prefix at every call", timed("rebuilt", least=16)),
            Control("exact prefix attention", timed("exact", least=16)),
        ),
        note="Least of several repeats on one thread, all lengths taking turns; each call is preceded by one unmeasured.",
    ),
    Claim(
        "NTK-6x",
        "The time of exact prefix attention grows at least as m^0.8 once the prefix is 16 times as long as the input",
        f"{PAPER}, appendix on complexity; 1 less what fixed costs take from it",
        Slope(0.8, band=(0.0, math.inf)),
        timed("exact", least=16),
        (
            Control("NTK-Attention", timed("folded", least=16)),
            Control("prefixes shorter than the input", timed("exact", most=0.5)),
        ),
        note="Caches make it steeper than 1 where keys and values outgrow them.",
    ),
    Claim(
        "NTK-7",
        "NTK-Attention adds exactly r d + r parameters to a head, d^2 + d with r = d",
        f"{PAPER}, abstract",
        Equality(0.0, every_row=True),
        parameters(),
        (
            Control("with the width of a model of 12 heads for d", parameters("width")),
            Control("without kappa", parameters("kappa")),
            Control("a prefix of keys and values", parameters("prefix")),
        ),
        unit=("m",),
        cases=("map", "d"),
        note="Entries of the folded tensors: numbers only. Z = Z_A Z_B of low rank is neither folded nor fitted here.",
    ),
)

FITS = (
    Claim(
        "NTK-9",
        "A fitted (Z, kappa) reproduces prefix attention on new inputs to 10 % of what the prefix changes, at every length",
        f"{PAPER}, section 4.4",
        Bound(upper=FITTED),
        fits(),
        (
            Control("Z = kappa = 0", fits("start")),
            Control("the constant map, fitted", fits(maps=("degree 0",))),
            Control("against another prefix", fits("other_prefix")),
        ),
        cases=("map", "kind", "spread", "m"),
        note="L-BFGS to exact prefix attention on training inputs; Frobenius norms on held-out ones; logits of standard "
        "deviation 0.3 and 1. Fits whose denominator is not positive for some held-out query count like any other.",
    ),
    Claim(
        "NTK-9s",
        "On prefixes of at least 64 rows, all draws of one Gaussian, shifted or not, the same holds for the map (1, x) with "
        "logits of standard deviation 0.3",
        f"{PAPER}, section 4.4; our restriction",
        Bound(upper=FITTED),
        affine(),
        (
            Control("Z = kappa = 0", affine("start")),
            Control("the constant map, fitted", affine(name="degree 0")),
            Control("against another prefix", affine("other_prefix")),
        ),
        cases=("kind", "m"),
        note="There attention to a long prefix tends to W_V^T (mu + W_K q / sqrt(d)), affine in q, which (1, x) holds exactly: "
        "no law for prefixes of other shapes. The restrictions to small logits and to long prefixes were made after first fits.",
    ),
    Claim(
        "NTK-9x",
        "Fitted with the prefix among its keys and values, NTK-Attention reproduces prefix attention",
        f"{PAPER}, section 4.4: where its published script puts the prefix, with that script's map ELU+1",
        Bound(upper=FITTED),
        leaks("leaked"),
        (
            Control("Z = kappa = 0", leaks("nothing"), trivial=True, why="the keys already hold the prefix"),
            Control("where the fit starts", leaks("noise")),
            Control("another prefix among the keys", leaks("leaked_other")),
        ),
        cases=("kind", "spread", "m"),
        expect="void",
        note="Error relative to the output; our optimiser, L-BFGS from noise. Nothing is left to fit, so it cannot test NTK-9.",
    ),
)

CLAIMS = (*ERRORS, *COSTS, *FITS)
