"""What is claimed of growing runs, how each claim is judged, and the controls that must fail."""

from __future__ import annotations

from assay import Bound, Claim, Control, Equality, Gate, NonInferiority, Ordering, Trend
from studies.growth.growing import PROTOCOLS
from studies.growth.runs_frames import (
    MAIN,
    against,
    best,
    on_cifar,
    overhead,
    reached,
    recovered,
    size,
    sizes,
    unequal,
)
from studies.growth.runs_size_claims import CASES, METHOD
from studies.growth.runs_size_claims import CLAIMS as SIZES

MARGIN = 0.01
"""Accuracy that a grown net may lack, and that an expansion may cost."""
SHARE = 0.2
"""Time of scoring over time of training."""
WINDOW = PROTOCOLS["digits"].window
PAIRS = (
    "Pairs share images, order of data and number of epochs; the reference is the mean of three static twins (one on CIFAR-10). "
    f"Only runs that have grown, in cases where five of them have. {METHOD}"
)
KFAC = "The K-FAC score, with a ratio above 1.007 and a gain above 0.01."
DEPARTURES = (
    "Departures from the paper: exact expansions, units without norm (2320 parameters in place of 2336), no dropout, no "
    "regularisation of the score, 45 000 images to train on, 5000 held out."
)

SMALL = Control("the net that never grew in place of the grown one", against("small", "twin"))
HALF = Control("the growing run stopped half-way", unequal("grown", "twin", column="half"))

IN_CIFAR = (
    Gate("the images are CIFAR-10, which only the cluster scale reads", on_cifar, Bound(lower=1.0, every_row=True)),
)

CLAIMS = (
    *SIZES,
    Claim(
        "SECNN-6",
        "After an expansion accuracy comes back: its best in the cool-down is at most 0.01 below the last before",
        "Appolinary et al. 2024, abstract and section 4",
        Bound(lower=-MARGIN),
        recovered("after"),
        (
            Control("the net trained anew for as many epochs", recovered("first")),
            Control("a box kernel as identity, before any training", recovered("box_now")),
            Control("a box kernel as identity, at the same place and time", recovered("box"), trivial=True),
        ),
        cases=("data",),
        note=f"A window of {WINDOW} epochs on digits, up to the next look. The best of several epochs is no less than one of them "
        "by itself, so that noise favours the claim. Fewer than six classes are learnt anew within the window, and left out of the "
        f"controls since epochs are nine steps. {METHOD}",
    ),
    Claim(
        "SECNN-6L",
        "After an expansion accuracy is at most 0.01 below that of the net left as it is, each at its best in the cool-down",
        "our extension of Appolinary et al. 2024, abstract and section 4",
        NonInferiority(MARGIN),
        recovered("after", left=True),
        (
            Control("a box kernel as identity, at the same place and time", recovered("box", left=True)),
            Control("the net trained anew for as many epochs", recovered("first", left=True)),
        ),
        note="While accuracy still rises, being back above its last value asks little of an expansion; so each is compared with "
        "the same net, trained on over the same examples without it. Digits, 6 to 10 classes.",
    ),
    Claim(
        "SECNN-7",
        f"A grown net lacks at most {MARGIN} of the test accuracy of a static net of its final architecture, trained as long",
        "our extension of Appolinary et al. 2024, section 1",
        NonInferiority(MARGIN),
        against("grown", "twin"),
        (SMALL, HALF),
        cases=CASES,
        note=PAIRS,
    ),
    Claim(
        "SECNN-7E",
        f"A grown net lacks at most {MARGIN} of the test accuracy of its static twin at equal compute",
        "our extension of Appolinary et al. 2024, section 1",
        NonInferiority(MARGIN),
        unequal("grown", "equal_compute"),
        (
            Control("the net that never grew in place of the grown one", unequal("small", "equal_compute")),
            Control("the growing run stopped half-way", unequal("grown", "equal_compute", column="half")),
        ),
        cases=CASES,
        note="Compute is the sum over steps of the parameters trained in each; the twin is judged at the epoch where it has spent "
        "as much as the whole growing run, scoring not counted.",
    ),
    Claim(
        "SECNN-7B",
        "The same with a scale and shift (norm in inference mode) in the inserted units, at ten classes",
        "our extension of Appolinary et al. 2024, section 3.2",
        NonInferiority(MARGIN),
        against("grown", "twin", unit_norm="calibrated"),
        (
            Control(SMALL.name, against("small", "twin", unit_norm="calibrated")),
            Control(HALF.name, unequal("grown", "twin", unit_norm="calibrated", column="half")),
        ),
        cases=CASES,
        note="The norms of units, calibrated to be the identity, keep to inference mode in both arms; live batch norm in units is not "
        "tested.",
    ),
    Claim(
        "SECNN-7R",
        "The same with an optimiser that starts anew at every expansion, at ten classes",
        "our extension of Appolinary et al. 2024, section 3",
        NonInferiority(MARGIN),
        against("grown", "twin", "restart"),
        (
            Control(SMALL.name, against("small", "twin", "restart")),
            Control(HALF.name, unequal("grown", "twin", "restart", column="half")),
        ),
        cases=CASES,
        note="Whether a gap is that of the optimiser's old state.",
    ),
    Claim(
        "SECNN-7D",
        "The same with twice as many looks and three times as many images to score on, at ten classes",
        "our extension of Appolinary et al. 2024, section 3.1",
        NonInferiority(MARGIN),
        against("grown", "twin", "dense"),
        (
            Control(SMALL.name, against("small", "twin", "dense")),
            Control(HALF.name, unequal("grown", "twin", "dense", column="half")),
        ),
        cases=CASES,
        note="Runs that look more often grow larger, and later.",
    ),
    Claim(
        "SECNN-7L",
        "The same after both have been trained on for as many epochs again, without growth, at ten classes",
        "our extension of Appolinary et al. 2024, section 1",
        NonInferiority(MARGIN),
        against("grown_longer", "twin_longer"),
        (
            Control("the net that never grew, as long as the run", unequal("small", "twin_longer")),
            Control("the growing run stopped at a quarter", unequal("grown", "twin_longer", column="half")),
        ),
        cases=CASES,
        note="Whether a gap is one of too few epochs since the last expansion.",
    ),
    Claim(
        "SECNN-8",
        "Growth where the score is best ends with a better test accuracy than growth of as many parameters anywhere",
        "our extension of Appolinary et al. 2024, section 3.1",
        Ordering("greater"),
        against("grown", "random_size"),
        (
            Control("the net that never grew in place of the grown one", against("small", "random_size")),
            Control("the growing run stopped after its first window", unequal("grown", "random_size", column="first")),
        ),
        cases=CASES,
        gates=(Gate("random growth has 0.9 of the parameters or more", sizes, Bound(lower=0.9), cases=CASES),),
        note="Random blocks and kinds at the same epochs, as many as fit below the parameters of the growing run. Where growth "
        f"is matched by number instead, sizes differ: the figure shows both, and there is no verdict. The run stopped half-way, a control before epochs of every "
        f"task were nine steps, was no longer clearly worse. {METHOD}",
    ),
    Claim(
        "SECNN-O",
        f"Scoring takes at most {SHARE} of the time of training",
        "our extension of Appolinary et al. 2024, section 3.1",
        Bound(upper=SHARE),
        overhead(),
        (
            Control("six times as many looks", overhead(times=6)),
            Control("three times as many looks", overhead(times=3)),
        ),
        cases=CASES,
        note="Seconds of training and of scoring alone, without evaluation. The controls are reckoned from the "
        "same seconds. Where an epoch was one pass over the images, of 1 to 9 steps, the first data gave shares from "
        "0.94 at two classes to 0.15 at ten; since then an epoch of every task is as many steps as ten classes have.",
    ),
    Claim(
        "SECNN-OD",
        f"The same with twice as many looks and three times as many images to score on, on digits: at most {SHARE}",
        "our extension of Appolinary et al. 2024, section 3.1",
        Bound(upper=SHARE),
        overhead("dense"),
        (
            Control("six times as many looks", overhead("dense", times=6)),
            Control("three times as many looks", overhead("dense", times=3)),
        ),
        cases=CASES,
        note="A look every 3 epochs, at 96 images.",
    ),
    Claim(
        "SECNN-11",
        "On CIFAR-10 the best accuracy is between 0.832 and 0.846, the extremes of five published trials",
        "Appolinary et al. 2024, section 4, figure 3",
        Equality(0.007, prediction=0.839),
        best("grown"),
        (
            Control("the net that never grew", best("small")),
            Control("the growing run stopped after its first window", best("grown", "first")),
        ),
        cases=("data",),
        gates=IN_CIFAR,
        note="Published means: 0.841 at 62 698 parameters, 0.80 at 33 655, 0.70 at 11 360. Test accuracy at the epoch with the best "
        f"accuracy on held-out training images; the paper selects on the test images themselves. {DEPARTURES} Whether its rule "
        "grows at all is SECNN-5P.",
    ),
    Claim(
        "SECNN-11P",
        "On CIFAR-10 the number of parameters at the best accuracy is within a factor of 2 of 62 698",
        "Appolinary et al. 2024, section 4, figure 3",
        Equality(1.0, prediction=0.0),
        size("grown"),
        (
            Control("the net that never grew", size("small")),
            Control("the parameters when 0.7 is reached", size("grown", 0.7)),
        ),
        cases=("data",),
        gates=IN_CIFAR,
        note=f"Binary logarithm of the ratio. {DEPARTURES}",
    ),
    Claim(
        "SECNN-11K",
        "Grown by the K-FAC score, on CIFAR-10 the best accuracy is between 0.832 and 0.846",
        "our extension of Appolinary et al. 2024, section 4, figure 3",
        Equality(0.007, prediction=0.839),
        best("grown", setting=MAIN),
        (
            Control("the net that never grew", best("small", setting=MAIN)),
            Control("the growing run stopped after its first window", best("grown", "first", MAIN)),
        ),
        cases=("data",),
        gates=IN_CIFAR,
        note=f"{KFAC} {DEPARTURES}",
    ),
    Claim(
        "SECNN-11PK",
        "Grown by the K-FAC score, on CIFAR-10 the parameters at the best accuracy are within a factor of 2 of 62 698",
        "our extension of Appolinary et al. 2024, section 4, figure 3",
        Equality(1.0, prediction=0.0),
        size("grown", setting=MAIN),
        (
            Control("the net that never grew", size("small", setting=MAIN)),
            Control("the parameters when 0.7 is reached", size("grown", 0.7, MAIN)),
        ),
        cases=("data",),
        gates=IN_CIFAR,
        note=f"Binary logarithm of the ratio. {KFAC} {DEPARTURES}",
    ),
    Claim(
        "SECNN-12",
        "One run gives nets of several sizes: parameters at an accuracy of 0.7, at 0.8 and at the best increase",
        "Appolinary et al. 2024, section 1, figure 3",
        Trend("increasing", at_least=0.5),
        reached("grown"),
        (
            Control("a net that never grew", reached("small")),
            Control("the static twin", reached("twin")),
        ),
        cases=("data",),
        note=f"Ten classes; tau is 1 where all three differ and are in order. Sizes are kept, parameters are not. "
        f"On CIFAR-10: {KFAC} {DEPARTURES}",
    ),
)
