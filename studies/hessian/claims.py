"""The claims of the papers, how each is judged, and the controls that must fail."""

from __future__ import annotations

from assay import Bound, Claim, Control, Equality, Gate, Ordering, Proportion, Slope, Trend
from studies.hessian.frames import (
    against,
    barrier_excess,
    bbp,
    bulk,
    clusters,
    convolutional,
    count_changes,
    count_difference,
    count_slopes,
    counted,
    counted_by_ratio,
    edge,
    exactly,
    gaps,
    gaps_on_clusters,
    lowest_bounds,
    lowest_over_time,
    null_bulk,
    number_of_negatives,
    on_path,
    outside,
    over_time,
    paired,
    pairs,
    spiked,
    sum_for_mean,
    twice,
    unequal_iterations,
    unequal_times,
    wide,
)  # fmt: skip
from studies.hessian.networks import CLASSES

FLAT = Slope(0.0, band=0.15)
"""An exponent that counts as zero."""
MOSTLY = Proportion(at_least=0.5)
COUNT_CASES = ("centres", "clusters")
BARRIER = 0.01
"""Nats between independent solutions below which there is nothing to compare a barrier with."""


def wrong_counts(least: int = 0, most: int = 1000) -> tuple[Control, ...]:
    """Counts that must not be found: other laws, other networks."""
    return (
        Control("2k outliers", counted_by_ratio(clusters(least=least, most=most), twice)),
        Control(
            "M/100 outliers",
            counted_by_ratio(clusters(least=least, most=most), lambda frame: frame["parameters"] / 100),
        ),
        Control("before training", counted(clusters(t=0, least=least, most=most), clear=True)),
        Control(
            "labels drawn at random",
            counted(clusters(labels="random", least=least, most=most), clear=True),
            why="classes without a mean of their own",
        ),
    )


CLAIMS = (
    Claim(
        "HES-1",
        "The Hessian of a trained network is a bulk near zero with a few outliers: at least 90 % of the eigenvalues lie "
        "below λ_1/100 wherever M ≥ 3N",
        "Sagun et al. 2017, Sec. 2.1, Fig. 1; Sagun et al. 2016, Sec. 2; thresholds ours",
        Bound(lower=0.9, every_row=True),
        bulk,
        (
            Control(
                "covariance of noise", null_bulk, why="half of its eigenvalues are zero, the others are all of one size"
            ),
            Control("most eigenvalues said to stand out", kind=Bound(upper=0.5, every_row=True)),
        ),
        cases=("depth", "activation", "width"),
        note="After 2000 steps of gradient descent, cross entropy. Every network counts, not their mean.",
    ),
    Claim(
        "HES-1G",
        "Between outliers and bulk there is a gap: detectors agree on the number of outliers, two or more, give or take one",
        "Sagun et al. 2017, Sec. 2.1, Fig. 1",
        MOSTLY,
        gaps,
        (
            Control("before training", gaps_on_clusters(clusters(t=0, least=5))),
            Control("labels drawn at random", gaps_on_clusters(clusters(labels="random", least=5))),
        ),
        cases=("depth", "activation", "width"),
        note="The largest ratio λ_j/λ_{j+1} against the number of eigenvalues above λ_1(H − G_class). On Gaussian clusters "
        "there is such a gap (HES-2); digits are not as well separated. The controls are networks on clusters. A count of one "
        "is no gap between classes: before training both detectors often find it.",
    ),
    Claim(
        "HES-2",
        "Trained on k Gaussian clusters, k = 2, 5, 10, a network has k outliers, give or take one",
        "Sagun et al. 2017, Sec. 3.1, Fig. 2, Table 1",
        MOSTLY,
        counted(clusters(most=10)),
        wrong_counts(most=10),
        cases=COUNT_CASES,
        note="Counted by the largest ratio λ_j/λ_{j+1}, which has no upper limit. Where the number of eigenvalues above "
        "λ_1(H − G_class) contradicts it by more than one, there is no clear gap: such a network speaks neither for the "
        "claim nor against it. For k = 2 the count must be exact.",
    ),
    Claim(
        "HES-2B",
        "One more cluster makes one more outlier: n_out = a + b k with b = 1, for k = 2, 5, 10",
        "Sagun et al. 2017, Table 1; the regression is ours",
        Equality(0.2, prediction=1.0),
        count_slopes(clusters(most=10)),
        (
            Control("two for each cluster", kind=Equality(0.2, prediction=2.0)),
            Control("before training", count_slopes(clusters(t=0, most=10))),
            Control("as many as M/100", kind=Equality(0.2, prediction=0.31), why="M = 3960 + 31 k"),
        ),
        cases=("centres", "detector"),
    ),
    Claim(
        "HES-2K",
        "Trained on 20 clusters or more, a network has k outliers, give or take one",
        "Sagun et al. 2017, Table 1",
        MOSTLY,
        counted(clusters(least=20)),
        wrong_counts(least=20),
        cases=COUNT_CASES,
        note="The second tier of the spectrum, k(k − 2) eigenvalues between pairs of classes, rises into the gap.",
    ),
    Claim(
        "HES-2-tanh",
        "Tanh networks on k = 2, 5, 10 clusters have k outliers, give or take one",
        "Sagun et al. 2017, Table 1, where the largest gap fails for tanh",
        MOSTLY,
        counted(clusters(activation="tanh", most=10)),
        (
            Control("2k outliers", counted_by_ratio(clusters(activation="tanh", most=10), twice)),
            Control("before training", counted(clusters(t=0, activation="tanh", most=10), clear=True)),
        ),
        cases=COUNT_CASES,
    ),
    Claim(
        "HES-3",
        "On fixed data, after equally many steps of one size, λ_1, λ_k, λ_2k and the number of eigenvalues above λ_1/100 "
        "do not depend on the width",
        "Sagun et al. 2017, Sec. 3.2, Fig. 3; Sagun et al. 2016, Fig. 4",
        FLAT,
        wide(),
        (
            Control(
                "widths compared at unequal times", unequal_times, why="t ∝ 1/n: training time alone moves λ_1 as 1/t"
            ),
            Control("λ_1 said to fall as 1/M", kind=Slope(-1.0, band=0.15)),
            Control("λ_1 said to grow as √M", kind=Slope(0.5, band=0.15)),
            Control("squared loss", wide(("mse", 1, "relu")), why="its Hessian does not fade as the network fits"),
        ),
        cases=("data", "what"),
        note=f"Networks of at least 2k = {2 * CLASSES} units after 2000 steps; narrower ones are bottlenecks.",
    ),
    Claim(
        "HES-3X",
        "The same holds for tanh units and for two hidden layers",
        "our extension of Sagun et al. 2017, Sec. 3.2",
        FLAT,
        wide(
            ("xent", 1, "tanh"),
            ("xent", 2, "relu"),
        ),
        (
            Control("said to fall as 1/M", kind=Slope(-1.0, band=0.15)),
            Control("said to grow as √M", kind=Slope(0.5, band=0.15)),
        ),
        cases=("data", "depth", "activation", "what"),
        note="It does not. With two hidden layers all top eigenvalues fall with the width, by about M^(−1/4); with tanh units λ_1 "
        "stays while λ_k and above all λ_2k fall. That the outliers do not know the width is a fact about the networks of the "
        "papers' figure.",
    ),
    Claim(
        "HES-3B",
        "More parameters merely scale the bulk: the share of eigenvalues above λ_1/100 falls as 1/M",
        "Sagun et al. 2017, Sec. 3.2, Fig. 3",
        Slope(-1.0, band=0.2),
        outside,
        (
            Control("bulk fraction independent of M", kind=FLAT),
            Control("falling as 1/√M", kind=Slope(-0.5, band=0.2)),
        ),
        cases=("data",),
    ),
    Claim(
        "HES-T",
        "Once everything is classified correctly, λ_1 and λ_k fall as 1/(η t)",
        "derived: p(1 − p) decays as 1/(η t) under cross entropy and gradient descent",
        Slope(-1.0, band=0.1),
        over_time,
        (
            Control("said not to move", kind=FLAT),
            Control("said to fall as 1/√t", kind=Slope(-0.5, band=0.1)),
        ),
        cases=("data", "width", "what"),
        note="The equality of top eigenvalues across widths, HES-3, is therefore one at equal η t, not of end points.",
    ),
    Claim(
        "HES-4",
        "Data that are harder to separate have larger top eigenvalues",
        "Sagun et al. 2016, Fig. 7",
        Trend("increasing", at_least=0.5),
        pairs("top"),
        (
            Control("said to have smaller ones", kind=Trend("decreasing", at_least=0.5)),
            Control(
                "standard deviations exchanged", pairs("top", rotate=True), why="the largest is called the smallest"
            ),
        ),
        cases=("width",),
        note="Two blobs in the plane, at ±(1, 1), of standard deviation 0.25, 0.5 and 1.",
    ),
    Claim(
        "HES-4N",
        "Data that are harder to separate have as many outliers",
        "Sagun et al. 2016, Fig. 7",
        Equality(0.5, prediction=0.0),
        count_changes(),
        (
            Control("twice as many", count_changes(2.0)),
            Control("said to have two more", kind=Equality(0.5, prediction=2.0)),
        ),
        cases=("width", "std"),
        note="Counted by the largest ratio λ_j/λ_{j+1} among the first ten, as a difference from the same seed's network at "
        "standard deviation 0.25. The class edge cannot exceed two here, so it would hide a rise.",
    ),
    Claim(
        "HES-5",
        "After training the k largest eigenvalues of H are those of its Gauss-Newton part G, to 5 %",
        "Sagun et al. 2017, Sec. 2.2, Eq. 3-5, with the split taken at the logits",
        Bound(upper=0.05),
        exactly("ggn_error"),
        (
            Control("before training", exactly("ggn_error", t=0)),
            Control("empirical Fisher in place of G", exactly("fisher_error")),
            Control("sum over examples in place of the mean", sum_for_mean),
            Control("diag(p) in place of diag(p) − p pᵀ", exactly("diagonal_error")),
        ),
        cases=("width",),
        note="Largest relative difference over the first k eigenvalues, relu networks.",
    ),
    Claim(
        "HES-5-tanh",
        "The same holds for tanh networks",
        "our extension of Sagun et al. 2017, Sec. 2.2",
        Bound(upper=0.05),
        exactly("ggn_error", activation="tanh"),
        (
            Control("before training", exactly("ggn_error", t=0, activation="tanh")),
            Control("empirical Fisher in place of G", exactly("fisher_error", activation="tanh")),
        ),
        cases=("width",),
        note="It does not within 3000 steps: with tanh units R fades no faster than G does, and the figure shows the difference "
        "hardly moving after 300 steps.",
    ),
    Claim(
        "HES-5I",
        "Before training they differ by more than half",
        "Sagun et al. 2017, Sec. 2.2 (the approximation is claimed near a minimum)",
        Bound(lower=0.5),
        exactly("ggn_error", t=0),
        (
            Control("after training", exactly("ggn_error")),
            Control("after 300 steps", exactly("ggn_error", t=300)),
        ),
        cases=("width",),
    ),
    Claim(
        "HES-5L",
        "With the paper's own split, f = p_y and ℓ = −log f, the first term approximates H after training",
        "Sagun et al. 2017, Sec. 2.2, read literally: the first term is the empirical Fisher matrix",
        Bound(upper=0.05),
        exactly("fisher_error"),
        (
            Control("at a third of the training time", exactly("fisher_error", t=1000)),
            Control("logit split before training", exactly("ggn_error", t=0)),
        ),
        cases=("width",),
        expect="refuted",
        note="At interpolation the empirical Fisher shrinks as (1 − p)², H only as 1 − p.",
    ),
    Claim(
        "HES-5X",
        "|λ_j(H) − λ_j(G)| ≤ ‖R‖ for every j, at every snapshot",
        "Weyl's inequality for H = G + R",
        Bound(upper=1e-9, every_row=True),
        against("largest_shift", "norm_r"),
        (
            Control("R of the output layer alone", against("largest_shift", "norm_r_readout"), why="it is zero"),
            Control("a tenth of ‖R‖", against("largest_shift", "norm_r", 0.1)),
        ),
        note="An identity: it tests the code. In units of λ_1.",
    ),
    Claim(
        "HES-6",
        "Negative eigenvalues remain after training, but |λ_min| is below 2 % of λ_1",
        "Sagun et al. 2017, Sec. 3.4, Fig. 5-6; threshold ours",
        Bound(upper=0.02),
        exactly("lowest_h", scale=-1.0),
        (
            Control("before training", exactly("lowest_h", t=0, scale=-1.0)),
            Control("no negative eigenvalues", exactly("negative"), Bound(upper=0.01), why="share below −1e-6 λ_1"),
        ),
        cases=("width",),
    ),
    Claim(
        "HES-6-tanh",
        "The same holds for tanh networks",
        "our extension of Sagun et al. 2017, Sec. 3.4",
        Bound(upper=0.02),
        exactly("lowest_h", scale=-1.0, activation="tanh"),
        (
            Control("before training", exactly("lowest_h", t=0, scale=-1.0, activation="tanh")),
            Control("no negative eigenvalues", exactly("negative", activation="tanh"), Bound(upper=0.01)),
        ),
        cases=("width",),
    ),
    Claim(
        "HES-6T",
        "|λ_min|/λ_1 falls as training goes on",
        "Sagun et al. 2017, Sec. 3.4, Fig. 5-6",
        Trend("decreasing", at_least=0.5),
        lowest_over_time(),
        (
            Control("said to rise", kind=Trend("increasing", at_least=0.5)),
            Control("snapshots shifted by one", lowest_over_time(shift=True), why="the start is called the end"),
        ),
        cases=("activation", "width"),
    ),
    Claim(
        "HES-6F",
        "The share of negative eigenvalues does not depend on the width",
        "Sagun et al. 2017, Sec. 3.4",
        FLAT,
        exactly("negative"),
        (
            Control("their number in place of their share", number_of_negatives()),
            Control("share said to fall as 1/M", kind=Slope(-1.0, band=0.15)),
        ),
        note="Eigenvalues below −1e-6 λ_1, in double precision. What counts as negative decides: the figure shows −1e-3 λ_1 too.",
    ),
    Claim(
        "HES-6F-tanh",
        "The same holds for tanh networks",
        "our extension of Sagun et al. 2017, Sec. 3.4",
        FLAT,
        exactly("negative", activation="tanh"),
        (
            Control("their number in place of their share", number_of_negatives("tanh")),
            Control("share said to fall as 1/M", kind=Slope(-1.0, band=0.15)),
        ),
        note="It does not: the share grows with the width at these sizes.",
    ),
    Claim(
        "HES-6X",
        "Negative eigenvalues come from R alone: λ_min(G) ≥ 0 and λ_min(H) ≥ λ_min(R)",
        "Sagun et al. 2017, Sec. 2.2 and 3.4; Weyl's inequality",
        Bound(lower=-1e-10, every_row=True),
        lowest_bounds(),
        (
            Control("H called positive semi-definite", exactly("lowest_h", t=None)),
            Control("a tenth of λ_min(R)", lowest_bounds(0.1)),
        ),
        note="An identity: it tests the code. In units of λ_1.",
    ),
    Claim(
        "HES-7",
        "After as many steps of one size, large batches end with a larger λ_1 than small ones",
        "Sagun et al. 2017, Sec. 3.3, Fig. 4",
        Ordering("greater", log=True),
        paired("largest"),
        (
            Control("small and large exchanged", paired("largest", ("small", "large"))),
            Control("unequal numbers of steps", unequal_iterations, why="small batches stopped after a fifth of them"),
        ),
        note="Mean of log λ_1 over the last five snapshots, 200 steps apart from first to last.",
    ),
    Claim(
        "HES-7-conv",
        "The same holds for convolutional networks",
        "Sagun et al. 2017, Sec. 3.3, Fig. 4",
        Ordering("greater", log=True),
        convolutional(),
        (
            Control("small and large exchanged", convolutional(swap=True)),
            Control("small batches said to have the larger λ_1", kind=Ordering("less", log=True)),
        ),
        cases=("data",),
        note="Two convolutions with max-pooling and two fully connected layers; mean of log λ_1 over the last three snapshots.",
    ),
    Claim(
        "HES-7N",
        "Large and small batches end with as many outliers, give or take one",
        "Sagun et al. 2017, Sec. 3.3, Fig. 4",
        Equality(1.0, prediction=0.0),
        count_difference(),
        (
            Control("large batches said to have k more", kind=Equality(1.0, prediction=float(CLASSES))),
            Control("said to have twice as many", count_difference(factor=2.0)),
        ),
        note="By the largest ratio λ_j/λ_{j+1}, averaged over the same snapshots.",
    ),
    Claim(
        "HES-8",
        "Large and small batches end in one basin: going on from the large-batch end with small batches, no barrier is "
        "crossed on the straight line",
        "Sagun et al. 2017, Sec. 4.1, Fig. 7-8",
        Bound(upper=0.0),
        barrier_excess("continued", 0.05),
        (
            Control(
                "hidden units reordered", barrier_excess("permuted", 0.05), why="the same function at another point"
            ),
            Control("independent starts", barrier_excess("other start", 0.05)),
        ),
        gates=(Gate("a barrier between independent solutions", on_path("other start"), Bound(lower=BARRIER)),),
        note="Barrier of the training loss, less 5 % of that between solutions from independent starts.",
    ),
    Claim(
        "HES-9",
        "One spike ℓ > 1 + √α moves the largest sample eigenvalue to ℓ(1 + α/(ℓ − 1)), α = M/N",
        "Sagun et al. 2017, Appendix B, Theorem 1 (Baik, Ben Arous & Péché 2005)",
        Equality(0.01, relative=True),
        spiked(bbp),
        (
            Control("N/M in place of α", spiked(bbp, inverse=True)),
            Control("ℓ(1 + α/ℓ)", spiked(lambda spike, alpha: spike + alpha)),
        ),
        cases=("dimensions", "examples", "spike"),
        note="Spikes at least a tenth above the transition. The tolerance leaves room for corrections of order 1/N.",
    ),
    Claim(
        "HES-9E",
        "A smaller spike leaves it at the edge (1 + √α)² of the bulk",
        "Sagun et al. 2017, Appendix B, Theorem 1; finite-size edge of Johnstone 2001",
        Equality(0.01, relative=True),
        edge(),
        (
            Control("the formula of large spikes", spiked(bbp, above=False)),
            Control("N/M in place of α", edge(inverse=True)),
        ),
        cases=("dimensions", "examples", "spike"),
        note="Spikes at least a tenth below the transition, against the mean of the Tracy-Widom law at this M and N, which "
        "lies below the limit by about M^(−2/3).",
    ),
)
