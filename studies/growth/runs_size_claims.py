"""What is claimed of scores and of the sizes at which growth ends, how it is judged, and the controls that must fail."""

from __future__ import annotations

from assay import Bound, Claim, Control, Equality, Ordering, Trend
from studies.growth.runs_frames import added, coin, late, late_coin, passing, ranks, ratio, shuffled

RANKED = 0.3
"""Rank correlation that a score needs: above 0, so that scores in random order can be refuted."""
RISES = 0.5
"""Kendall's tau that a trend needs, for the same reason."""
LATE = 0.5
"""Expansions in the last third of training that count as saturation."""
CASES = ("data", "classes")
METHOD = (
    "Under test: the ggn score and a ratio above 1.015 (on CIFAR-10 the K-FAC score and 1.007), a gain above 0.01, exact "
    "expansions, units without norm; the paper's own rule is judged in SECNN-5P."
)
TASKS = "Appolinary et al. 2024, section 1; Mitchell et al. 2023, introduction"


def no_trend(setting: str, axis: str, least: float = 0) -> tuple[Control, ...]:
    """Sizes that vary over an axis without following it."""
    return (
        Control("expansions decided by a coin", coin(setting, axis, least)),
        Control("sizes in random order within a seed", shuffled(setting, axis, least)),
    )


CLAIMS = (
    Claim(
        "SECNN-4b",
        f"The gain of the score ranks expansions by the drop of the loss they buy: rank correlation of {RANKED} or more",
        "Mitchell et al. 2023, section 3; Appolinary et al. 2024, section 2.1",
        Bound(lower=RANKED),
        ranks("ggn"),
        (
            Control("scores in random order", ranks("shuffled")),
            Control("the score of circulating code", ranks("circulating")),
            Control("the number of parameters added", ranks("added"), trivial=True),
        ),
        cases=("data",),
        note="15 expansions of one net at two checkpoints, each trained for 40 steps on all examples at once; Spearman's "
        "correlation of the ggn score's gain with the drop beyond that without expansion, mean over checkpoints.",
    ),
    Claim(
        "SECNN-4p",
        "The gain of the score ranks expansions better than the number of parameters that they add",
        "our extension of Mitchell et al. 2023, section 3",
        Ordering("greater"),
        ranks("ggn", "added"),
        (
            Control("scores in random order", ranks("shuffled", "added")),
            Control("the score of circulating code", ranks("circulating", "added")),
        ),
        cases=("data",),
        note="A score that ranks no better than a count of parameters adds nothing. Among the six expansions of nearly equal size, a "
        "unit or one channel in each block, the first data gave correlations of 0.66 for the score, 0.43 for the number of parameters "
        "and 0.39 for the score of circulating code: too near to each other, with eight seeds, to be a claim with controls.",
    ),
    Claim(
        "SECNN-5",
        "The more classes, and with them images, the more parameters are added",
        TASKS,
        Trend("increasing", at_least=RISES),
        added("ggn", "classes"),
        no_trend("ggn", "classes"),
        cases=("data",),
        note="Parameters added, not their number: the start nets of more classes have larger readouts. Trends compare within a seed. "
        f"Classes are not told from images: 2 to 10 classes are some 240 to 1200 images. {METHOD}",
    ),
    Claim(
        "SECNN-5M",
        "The same from four classes on",
        TASKS,
        Trend("increasing", at_least=RISES),
        added("ggn", "classes", least=4),
        no_trend("ggn", "classes", least=4),
        cases=("data",),
        note="Whether the trend is more than a step between two classes, on which hardly any net grows, and all others.",
    ),
    Claim(
        "SECNN-5D",
        "The same from two classes on, with twice as many looks and three times as many images to score on",
        TASKS,
        Trend("increasing", at_least=RISES),
        added("dense", "classes"),
        no_trend("dense", "classes"),
        cases=("data",),
        note="Whether the trend depends on how often, and on how much, a run looks: the looks of SECNN-5 are chosen for their cost.",
    ),
    Claim(
        "SECNN-5C",
        "The number of parameters added stays within a factor of 2 with twice as many looks and three times as many images",
        f"our extension of {TASKS}",
        Equality(1.0, prediction=0.0),
        ratio("dense"),
        (
            Control("any gain is taken: tau = 1 + 1e-9, alpha = 0", ratio("always")),
            Control("the sizes of ten classes for those of fewer", ratio("dense", other_task=True)),
        ),
        cases=CASES,
        note="Binary logarithm of the ratio, seed by seed, where both have grown, in cases where five seeds have. Where this is refuted "
        "it is not the task alone that sets the size: so do the looks.",
    ),
    Claim(
        "SECNN-5N",
        "The noisier the images of ten digits, the more parameters are added",
        "our extension of Appolinary et al. 2024, section 1",
        Trend("increasing", at_least=RISES),
        added("ggn", "noise"),
        no_trend("ggn", "noise"),
        cases=("data",),
        note=f"Gaussian noise on all pixels, of images to train and to test on. {METHOD}",
    ),
    Claim(
        "SECNN-5S",
        f"On easy tasks growth has stopped: at most {LATE:g} expansions in the last third of training",
        "Appolinary et al. 2024, section 1",
        Bound(upper=LATE),
        late("ggn"),
        (
            Control("any gain is taken: tau = 1 + 1e-9, alpha = 0", late("always")),
            Control("expansions decided by a coin", late_coin),
        ),
        cases=CASES,
        note=f"2 and 4 classes. {METHOD}",
    ),
    Claim(
        "SECNN-5P",
        "By the paper's rule, the diagonal score and a threshold of 2, networks grow: one expansion a run or more",
        "Appolinary et al. 2024, section 3.1",
        Bound(lower=1.0),
        passing("secnn"),
        (
            Control("a threshold of 4", passing("secnn", 4.0), why="looks above it along the same runs"),
            Control("the score of the other runs with a threshold of 2", passing("ggn", 2.0), why="looks above it"),
        ),
        cases=("data",),
        expect="refuted",
        note="All numbers of classes, exact expansions, no regularisation of the score, whose strength the paper does not give.",
    ),
)
