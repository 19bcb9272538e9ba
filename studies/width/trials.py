"""What the study measures: the factors of each trial, and the functions that measure a pack."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from assay import Factor, Pack, Table, Trial, seeds
from studies.width.inputs import DATA, INPUTS, OUTPUTS, PROBES, batches_per_member, dataset
from studies.width.parametrizations import NAMED, PLANE, spec_of
from theory.abc.spec import HIDDEN_QUANTITIES, QUANTITIES, AbcSpec

if TYPE_CHECKING:
    import pandas as pd

STEPS = (1, 2, 4)
"""Steps after which sizes are recorded: the laws are for a number of steps that does not grow with the width."""
PLANE_WIDTH = 1024
LINEAR_NETWORK = "linear, W1 only"


def geometric(low: int, high: int) -> tuple[int, ...]:
    """Widths from `low` to `high`, doubling."""
    widths = [low]
    while widths[-1] < high:
        widths.append(2 * widths[-1])
    return tuple(widths)


# --- Sizes after a few steps -----------------------------------------------------------------------------------------


def _measurable(cell: Mapping[str, Any]) -> bool:
    """Keep the combinations that mean something.

    SP is run at η = 1, where its first step is neither lost in rounding nor saturates φ; all others at η = 8, large
    enough for the Θ(1) terms to dominate the n^(-1/2) fluctuations. The linear network with a frozen upper part is
    the paper's own example of what a nonlinear φ excludes; the plane is swept at two hidden layers, up to a width that
    tells its regimes apart.
    """
    name, depth = cell["parametrization"], cell["depth"]
    if name == "mfp" and depth != 1:
        return False
    if cell["eta"] != (1.0 if name.startswith("sp") else 8.0):
        return False
    if cell["network"] == LINEAR_NETWORK:
        return depth == 1 and name in ("ntp", "mup")
    return name not in PLANE or (depth == 2 and cell["width"] <= PLANE_WIDTH)


def _scaling_seconds(cell: Mapping[str, Any]) -> float:
    n, depth = cell["width"], cell["depth"]
    return 6e-3 * depth + 1.2e-6 * n * depth + 1.4e-7 * n * n * (depth - 1)


def _scaling_bytes(cell: Mapping[str, Any]) -> float:
    n, depth = cell["width"], cell["depth"]
    d = INPUTS[cell["data"]]
    return 8.0 * (4 * (d * n + n * n * (depth - 1)) + 4 * PROBES * OUTPUTS * n * depth + 64 * d)


def measure_scaling(pack: Pack) -> pd.DataFrame:
    """Train for a few steps with the loss -Σ y f and measure how far everything moved.

    The derivative of this loss is −y for all t, so the sizes do not inherit the width dependence of f_0, as they
    would with the squared loss.
    """
    import pandas as pd

    from theory.abc.coordinates import coordinate_check

    depth, n, network = pack["depth"], pack["width"], pack["network"]
    x, y, probes = batches_per_member(pack["data"], pack.column("seed"), batch=16, steps=max(STEPS), targets="centred")
    measured = coordinate_check(
        [spec_of(name, depth) for name in pack.column("parametrization")],
        pack.column("seed"),
        n,
        "identity" if network == LINEAR_NETWORK else "tanh",
        "linear",
        pack.column("eta"),
        x,
        y,
        probes,
        record=STEPS,
        quantities=QUANTITIES,
        trainable=(1,) if network == LINEAR_NETWORK else None,
        device=pack.device,
    )
    frames = []
    for quantity, values in measured.items():
        layers = range(1, depth + 1) if quantity in HIDDEN_QUANTITIES else [depth + 1]
        frames.append(pack.frame({"t": STEPS, "layer": layers}, value=values).assign(quantity=quantity))
    return pd.concat(frames, ignore_index=True)


scaling = Trial(
    "scaling",
    (
        DATA,
        Factor("network", ("tanh", LINEAR_NETWORK)),
        Factor("depth", {"smoke": (1, 2), "laptop": (1, 2), "cluster": (1, 2, 3)}),
        Factor(
            "width", {"smoke": geometric(64, 512), "laptop": geometric(128, 2048), "cluster": geometric(128, 16384)}
        ),
        Factor("parametrization", NAMED + PLANE, packed=True),
        Factor("eta", (1.0, 8.0), packed=True),
        seeds(8, 16, 32),
    ),
    (Table("scaling", {"quantity": str, "layer": int, "t": int, "value": float}),),
    measure_scaling,
    where=_measurable,
    cost=_scaling_seconds,
    memory=_scaling_bytes,
    gpus={"cluster": 0.5},
)


# --- The symmetry of abc-parametrizations -----------------------------------------------------------------------------

VARIANTS = ("global", "per layer", "c kept", "rate on W", "mfp is mup", "ntp is mup", "slow mfp is mup")


def _related(cell: Mapping[str, Any]) -> bool:
    """The mean field parametrization has one hidden layer and replaces the base of the comparison."""
    of_mfp = cell["variant"].endswith("is mup")
    return cell["depth"] == 1 and cell["base"] == "mup" if of_mfp else True


def related_pair(variant: str, base: str, depth: int, seed: int) -> tuple[AbcSpec, AbcSpec]:
    """Two specs that a variant says are the same network; θ is random, rational, and at least 1/8 in size."""
    dice = random.Random(f"{variant} {base} {depth} {seed}")

    def theta() -> Fraction:
        return dice.choice((-1, 1)) * Fraction(dice.randint(2, 8), 16)

    if variant.endswith("is mup"):
        name = {"mfp is mup": "mfp", "ntp is mup": "ntp", "slow mfp is mup": "mfp+c:1"}[variant]
        return spec_of(name, depth), spec_of("mup", depth)
    one = spec_of(base, depth)
    other = one.shift([theta() for _ in range(depth + 1)] if variant == "per layer" else theta())
    if variant == "c kept":
        other = replace(other, c=one.c)
    if variant == "rate on W":  # η n^-c on W is η n^-(c - 2a) on w
        one, other = (replace(s, c=tuple(c - 2 * a for a, c in zip(s.a, s.c, strict=True))) for s in (one, other))
    return one, other


def measure_symmetry(pack: Pack) -> pd.DataFrame:
    """Train both members of each pair from the same normal draws and compare their outputs over five steps."""
    import numpy as np

    from theory.abc.dynamics import trajectory

    depth, seed = pack["depth"], pack.column("seed")
    pairs = [
        related_pair(variant, base, depth, member)
        for variant, base, member in zip(pack.column("variant"), pack.column("base"), seed, strict=True)
    ]
    x, y, probes = batches_per_member("digits", seed, batch=16, steps=5)
    specs = [spec for pair in zip(*pairs, strict=True) for spec in pair]
    twice = [tensor.repeat(2, *[1] * (tensor.dim() - 1)) for tensor in (x, y, probes)]
    f = trajectory(specs, seed * 2, pack["width"], "tanh", "mse", 0.5, *twice, device=pack.device)
    one, other = np.split(f, 2)
    scale = np.abs(one).max(axis=(1, 2, 3))
    return pack.frame(difference=np.abs(one - other).max(axis=(1, 2, 3)) / scale)


symmetry = Trial(
    "symmetry",
    (
        Factor("depth", (1, 2, 3)),
        Factor("width", {"smoke": (64,), "laptop": (64, 256), "cluster": (64, 256, 1024)}),
        Factor("variant", VARIANTS, packed=True),
        Factor("base", ("mup", "ntp", "sp"), packed=True),
        seeds(8, 16, 32),
    ),
    (Table("symmetry", {"difference": float}),),
    measure_symmetry,
    where=_related,
    cost=lambda cell: 2e-3 + 4e-8 * cell["width"] ** 2,
    memory=lambda cell: 64.0 * cell["width"] * (64 + cell["width"] * cell["depth"]),
)


# --- Learning rates ---------------------------------------------------------------------------------------------------

RATE_NETWORKS = ("sp:0", "ntp", "mup")
"""sp:0 is the standard parametrization with its learning rate left alone: what a framework does by default."""
BISECTIONS = 9
STABILITY_STEPS = 12


def measure_stability(pack: Pack) -> pd.DataFrame:
    """Bisect for the largest learning rate with which the loss stays below three times where it may start."""
    from theory.abc.dynamics import max_stable_learning_rate

    seed = pack.column("seed")
    x, y, _ = batches_per_member(pack["data"], seed, batch=64, steps=STABILITY_STEPS)
    found = max_stable_learning_rate(
        [spec_of(name, 2) for name in pack.column("parametrization")],
        seed,
        pack["width"],
        "relu",
        "mse",
        x,
        y,
        steps=STABILITY_STEPS,
        bisections=BISECTIONS,
        low=-14.0,
        high=10.0,
        device=pack.device,
    )
    return pack.frame(max_eta=found.eta)


stability = Trial(
    "stability",
    (
        DATA,
        Factor("width", {"smoke": geometric(64, 256), "laptop": geometric(128, 2048), "cluster": geometric(128, 8192)}),
        Factor("parametrization", RATE_NETWORKS, packed=True),
        seeds(8, 8, 20),
    ),
    (Table("stability", {"max_eta": float}),),
    measure_stability,
    cost=lambda cell: 0.01 + 8.2e-7 * cell["width"] ** 2,
    memory=lambda cell: 4.0 * 6 * cell["width"] * (INPUTS[cell["data"]] + cell["width"]),
    gpus={"cluster": 0.25},
)


def measure_kernel_stability(pack: Pack) -> pd.DataFrame:
    """The same bisection for the infinitely wide NTP network: kernel gradient descent from a draw of its f_0.

    No network is trained: f_0 is Gaussian with the NNGP kernel, and the NTK carries it on.
    """
    import numpy as np

    from theory.abc.kernels import kernel_stable_learning_rate, nngp_ntk

    rates = []
    rows = np.arange(STABILITY_STEPS * 64).reshape(STABILITY_STEPS, 64)
    for seed in pack.column("seed"):
        x, y, _ = batches_per_member(pack["data"], [seed], batch=64, steps=STABILITY_STEPS)
        inputs, targets = x[0].flatten(0, 1).numpy(), y[0].flatten(0, 1).numpy()
        nngp, ntk = nngp_ntk(inputs, inputs, 2, "relu")
        size, directions = np.linalg.eigh(nngp)
        draw = np.random.default_rng(seed).standard_normal((len(inputs), OUTPUTS))
        f_0 = directions * np.sqrt(np.maximum(size, 0.0)) @ draw
        rates.append(kernel_stable_learning_rate(ntk, f_0, targets, rows, bisections=BISECTIONS))
    return pack.frame(max_eta=rates)


kernel_stability = Trial(
    "kernel_stability",
    (DATA, Factor("parametrization", ("ntp",)), seeds(8, 8, 20)),
    (Table("kernel_stability", {"max_eta": float}),),
    measure_kernel_stability,
    cost=lambda cell: 0.5,
    memory=lambda cell: 40e6,
)

TRANSFER_STEPS = 100


def measure_transfer(pack: Pack) -> pd.DataFrame:
    """Train at each learning rate of a grid and record the loss on the whole training set."""
    import numpy as np

    from theory.abc.dynamics import training_loss

    x, y = dataset(pack["data"])
    seed = pack.column("seed")
    found = training_loss(
        [spec_of(name, 2) for name in pack.column("parametrization")],
        seed,
        pack["width"],
        "relu",
        pack["loss_function"],
        np.exp2(pack.column("log2_eta")).tolist(),
        x,
        y,
        batch=32,
        steps=TRANSFER_STEPS,
        data_seeds=seed,
        evaluate={"train": (x, y)},
        device=pack.device,
    )
    return pack.frame(loss=found["train_loss"], accuracy=found["train_accuracy"])


transfer = Trial(
    "transfer",
    (
        DATA,
        Factor("loss_function", ("mse", "xent")),
        Factor("width", {"smoke": geometric(64, 256), "laptop": geometric(128, 1024), "cluster": geometric(128, 8192)}),
        Factor("parametrization", RATE_NETWORKS, packed=True),
        Factor(
            "log2_eta",
            {
                "smoke": tuple(float(k) for k in range(-5, 9)),
                "laptop": tuple(float(k) for k in range(-7, 10)),
                "cluster": tuple(k / 2 for k in range(-24, 19)),
            },
            packed=True,
        ),
        seeds(4, 8, 20),
    ),
    (Table("transfer", {"loss": float, "accuracy": float}),),
    measure_transfer,
    cost=lambda cell: 0.004 + 3.7e-7 * cell["width"] ** 2,
    memory=lambda cell: 4.0 * 4 * cell["width"] * (INPUTS[cell["data"]] + cell["width"]),
    gpus={"cluster": 0.25},
)


# --- Kernel gradient descent ------------------------------------------------------------------------------------------

KERNEL_STEPS = 10
KERNEL_ETA = 4.0


def measure_kernel(pack: Pack) -> pd.DataFrame:
    """Train relu networks on the squared loss and compare them with kernel gradient descent from their own f_0.

    "ntk" and "nngp" are relative distances ‖f_T − f_T^kernel‖ / ‖f_T − f_0‖ on the probes for the two kernels.
    """
    import numpy as np
    import pandas as pd
    import torch

    from theory.abc.dynamics import trajectory
    from theory.abc.kernels import kernel_gradient_descent, nngp_ntk

    seed, n = pack.column("seed"), pack["width"]
    x, y, probes = batches_per_member("digits", seed, batch=16, steps=KERNEL_STEPS)
    points = torch.cat([probes, x.flatten(1, 2)], dim=1)  # [K, P + T B, d]: the recursion needs f on every batch too
    f = trajectory(
        [spec_of(name, 2) for name in pack.column("parametrization")],
        seed, n, "relu", "mse", KERNEL_ETA, x, y, points, device=pack.device,
    )  # fmt: skip
    rows = PROBES + np.arange(KERNEL_STEPS * 16).reshape(KERNEL_STEPS, 16)
    errors: dict[str, list[float]] = {"ntk": [], "nngp": []}
    for member in range(len(pack)):
        everything = points[member].numpy()
        targets = np.concatenate([np.zeros((PROBES, OUTPUTS)), y[member].flatten(0, 1).numpy()])
        nngp, ntk = nngp_ntk(everything, everything, 2, "relu")
        moved = np.linalg.norm(f[member, -1, :PROBES] - f[member, 0, :PROBES])
        for name, kernel in (("ntk", ntk), ("nngp", nngp)):
            predicted = kernel_gradient_descent(kernel, f[member, 0], targets, rows, KERNEL_ETA, "mse")
            errors[name].append(float(np.linalg.norm(f[member, -1, :PROBES] - predicted[-1, :PROBES]) / moved))
    frames = [pack.frame(value=np.array(values)).assign(quantity=name) for name, values in errors.items()]
    return pd.concat(frames, ignore_index=True)


kernel = Trial(
    "kernel",
    (
        Factor("width", {"smoke": geometric(64, 512), "laptop": geometric(128, 2048), "cluster": geometric(128, 8192)}),
        Factor("parametrization", ("ntp", "mup"), packed=True),
        seeds(8, 16, 32),
    ),
    (Table("kernel", {"quantity": str, "value": float}),),
    measure_kernel,
    cost=lambda cell: 0.015 + 2.1e-7 * cell["width"] ** 2,
    memory=lambda cell: 8.0 * 4 * cell["width"] * (64 + cell["width"]),
)

TRIALS = (scaling, symmetry, stability, kernel_stability, transfer, kernel)
