"""Growing runs and what they are compared with: static twins, small nets, growth at random locations; and how scores rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from assay import Factor, Pack, Table, Trial, scaled, seeds
from studies.growth.growing import (
    PROTOCOLS,
    SETTINGS,
    Act,
    Task,
    course,
    elsewhere,
    grower,
    protocol_of,
    start,
    task,
)

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from theory.growth.network import Architecture
    from theory.growth.training import Training

TWINS = {"digits": 3, "cifar10": 1}
"""Static twins of a run, trained as one program: fresh initial weights, the run's order of data."""
HARD = 10
"""Classes at which the arms are trained that tell the method from the protocol."""
TRIALS_OF_THE_PAPER = 5
"""Runs on CIFAR-10, as many as the paper's."""
WHERE = (6, 8, 10)
"""Classes at which growth is tried at random locations."""


def arms(cell: Mapping[str, Any]) -> tuple[str, ...]:
    """What is trained in a cell, in this order.

    grown                        the growing run
    twin                         its final architecture from the beginning
    small                        its first architecture to the end, from the run's own initial weights
    random, random_size          growth elsewhere, as often or by as many parameters
    grown_longer, twin_longer    both trained on for as many epochs again, without growth
    """
    plain = cell["unit_norm"] == "none" and cell["noise"] == 0
    if cell["data"] != "digits":
        return ("grown", "twin", "small")
    rarely = cell["setting"] == "dense" and cell["classes"] != HARD
    if cell["setting"] in ("secnn", "always") or cell["noise"] or rarely:
        return ("grown",)
    found = ["grown", "twin", "small"]
    if cell["setting"] == "ggn" and plain and cell["classes"] in WHERE:
        found += ["random", "random_size"]
    if cell["setting"] == "ggn" and plain and cell["classes"] == HARD:
        found += ["grown_longer", "twin_longer"]
    return tuple(found)


class Cell:
    """One growing run and its arms; `done` holds what each finished arm has come to."""

    def __init__(self, cell: Mapping[str, Any], done: dict[str, Any], device: str) -> None:
        self.cell, self.done = cell, done
        self.data, self.seed, self.epochs = str(cell["data"]), int(cell["seed"]), int(cell["epochs"])
        self.setting = SETTINGS[cell["setting"]]
        self.protocol = protocol_of(self.data, self.setting)
        self.device = device
        self.to: Task = task(self.data, cell["classes"], cell["noise"], self.seed, device)

    def fresh(self, architecture: Architecture, own: list[int]) -> Callable[[], Training]:
        """Training of new networks, one per initial seed, in the run's order of data."""
        from theory.growth.network import initial
        from theory.growth.training import Training

        p, seed, to = self.protocol, self.seed, self.to

        def begin() -> Training:
            net = initial(architecture, own, device=self.device)
            orders = [seed] * len(own)
            return Training(net, *to.train, orders, batch=p.batch, rate=p.rate, l1=p.l1, epoch_steps=p.epoch_steps)

        return begin

    def resumed(self, arm: str) -> Callable[[], Training]:
        """Training that goes on where an arm ended."""
        from theory.growth.training import Training

        return lambda: Training.resumed(self.done[arm]["training"], *self.to.train)

    def final(self) -> Architecture:
        """The architecture that the growing run ended with."""
        from theory.growth.network import Architecture

        return Architecture(**self.done["grown"]["architecture"])

    def plan(self, arm: str) -> tuple[Callable[[], Training], Act | None, int]:
        """How an arm begins, what it does between epochs, and for how many epochs in all."""
        small = start(self.data, self.cell["classes"], self.cell["unit_norm"])
        p, epochs = self.protocol, self.epochs
        if arm == "grown":
            box = self.data == "digits" and "random" in arms(self.cell)
            return self.fresh(small, [self.seed]), grower(self.to, self.setting, p, self.seed, box), epochs
        if arm == "twin":
            own = [1000 * (twin + 1) + self.seed for twin in range(TWINS[self.data])]
            return self.fresh(self.final(), own), None, epochs
        if arm == "small":
            return self.fresh(small, [self.seed]), None, epochs
        if arm in ("random", "random_size"):
            by = "count" if arm == "random" else "size"
            return (
                self.fresh(small, [self.seed]),
                elsewhere(self.to, p, self.done["grown"]["events"], self.seed, by),
                epochs,
            )
        return self.resumed(arm.removesuffix("_longer")), None, 2 * epochs

    def measure(self, arm: str, state: dict[str, Any] | None, keep: Callable[[Mapping[str, Any]], None]) -> None:
        """Train an arm, from a saved state if there is one, and note what it came to."""
        begin, act, epochs = self.plan(arm)
        training, found = course(self.to, self.protocol, epochs, begin, act, state, keep)
        earlier = arm.endswith("_longer")
        rows = (self.done[arm.removesuffix("_longer")]["rows"] if earlier else []) + found["rows"]
        self.done[arm] = found | {"rows": rows, "steps": training.epoch_steps}
        self.done[arm]["architecture"] = vars(training.net.architecture).copy()
        if f"{arm}_longer" in arms(self.cell):
            self.done[arm]["training"] = training.state()


def measure_runs(pack: Pack) -> dict[str, pd.DataFrame]:
    """Train one cell after another, arm by arm; a pack that was killed goes on where it last saved."""
    saved = pack.team.load() or {"done": {}, "course": None, "place": ""}
    done: dict[str, dict[str, Any]] = saved["done"]
    for cell in pack.cells:
        of = Cell(cell.factors, done.setdefault(cell.id, {}), pack.device)
        for arm in arms(cell.factors):
            if arm in of.done:
                continue
            place = f"{cell.id} {arm}"

            def keep(state: Mapping[str, Any], place: str = place) -> None:
                pack.team.save({"done": done, "course": dict(state), "place": place})

            of.measure(arm, saved["course"] if saved["place"] == place else None, keep)
    return frames(pack, done)


# --- Rows -------------------------------------------------------------------------------------------------------------

FINAL = ("parameters", "trained", "compute", "train_loss", "test", "best", "half", "first")


def outcome(found: Mapping[str, Any], epochs: int, first: int) -> dict[str, float]:
    """What an arm has come to after its first `epochs` epochs, mean over its members.

    trained   epochs
    compute   sum over steps of the parameters trained in each, in millions
    best      test accuracy at the epoch with the best held-out accuracy, the first one of equals
    half      test accuracy after half of the epochs
    first     best test accuracy within the first `first` epochs
    """
    rows = found["rows"][:epochs]
    members = range(len(rows[0]["test"]))
    tests = [[row["test"][m] for row in rows] for m in members]
    helds = [[row["held"][m] for row in rows] for m in members]
    at = [held.index(max(held)) for held in helds]
    mean = lambda values: sum(values) / len(members)  # noqa: E731
    return {
        "parameters": rows[-1]["parameters"],
        "trained": len(rows),
        "compute": sum(row["parameters"] for row in rows) * found["steps"] / 1e6,
        "train_loss": mean(rows[-1]["train_loss"]),
        "test": mean([test[-1] for test in tests]),
        "best": mean([test[place] for test, place in zip(tests, at, strict=True)]),
        "half": mean([test[(len(test) - 1) // 2] for test in tests]),
        "first": mean([max(test[:first]) for test in tests]),
    }


def frames(pack: Pack, done: Mapping[str, Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """The tables of finished cells."""
    import pandas as pd

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("final", "epochs", "events", "recoveries", "times")}
    for cell in pack.cells:
        of, factors = done[cell.id], cell.factors
        window, classes = PROTOCOLS[str(factors["data"])].window, {"cell": cell.id}
        for arm in arms(factors):
            rows = of[arm]["rows"]
            found["final"].append(classes | {"arm": arm} | outcome(of[arm], len(rows), window))
            for row in rows if arm in ("grown", "twin", "small", "random_size") else ():
                means = {name: sum(row[name]) / len(row[name]) for name in ("train_loss", "test", "held")}
                found["epochs"].append(
                    classes | {"arm": arm, "epoch": row["epoch"], "parameters": row["parameters"]} | means
                )
        if "twin" in of:  # the twin, stopped when it has cost as much as the growing run
            steps, P = of["grown"]["steps"], of["twin"]["rows"][-1]["parameters"]
            spent = outcome(of["grown"], len(of["grown"]["rows"]), window)["compute"] * 1e6
            stopped = max(1, round(spent / (P * steps)))
            found["final"].append(classes | {"arm": "equal_compute"} | outcome(of["twin"], stopped, window))
        for event in of["grown"]["events"]:
            lists = {name: [float(value) for value in event[name]] for name in ("widths", "units")}
            found["events"].append(classes | event | lists)
        rows = of["grown"]["rows"]
        for recovery in of["grown"]["recoveries"]:
            after = [row["test"][0] for row in rows[recovery["epoch"] : recovery["epoch"] + window]]
            found["recoveries"].append(classes | recovery | {"after": max(after), "epochs_after": len(after)})
        found["times"].append(classes | {name: of["grown"][name] for name in ("train_s", "score_s")})
    names = {table.name: list(table.columns) for table in runs.tables}
    return {name: pd.DataFrame(found[name], columns=["cell", *columns]) for name, columns in names.items()}


def planned(cell: Mapping[str, Any]) -> bool:
    """Which combinations of factors are run: one axis at a time from the plain setting."""
    data, setting, classes = cell["data"], cell["setting"], cell["classes"]
    if data != "digits":
        large = classes == HARD and cell["epochs"] == 300 and cell["seed"] < TRIALS_OF_THE_PAPER
        return large and setting in ("secnn", LARGE) and cell["unit_norm"] == "none" and cell["noise"] == 0
    if setting == LARGE or cell["epochs"] == 300:
        return False
    if setting == "always":
        return cell["unit_norm"] == "none" and cell["noise"] == 0 and classes in (2, 4)
    if setting in ("secnn", "dense"):
        return cell["unit_norm"] == "none" and cell["noise"] == 0
    if setting == "restart" or cell["unit_norm"] != "none" or cell["noise"]:
        off = (setting == "restart") + (cell["unit_norm"] != "none") + (cell["noise"] > 0)
        return classes == HARD and off == 1 and setting in ("ggn", "restart")
    return True


def _seconds(cell: Mapping[str, Any]) -> float:
    if cell["data"] != "digits":
        return 30.0 * cell["epochs"]
    relative = {"grown": 1.3, "twin": 2.5, "small": 0.8, "random": 1.2, "random_size": 1.4, "grown_longer": 1.5}
    size = {"always": 3.0, "dense": 2.0}.get(cell["setting"], 1.0)
    share = sum(relative.get(arm, 2.5) for arm in arms(cell))
    return 0.1 + share * size * cell["epochs"] * PROTOCOLS["digits"].epoch_steps * 3.5e-3


CLASSES = (2, 4, 6, 8, 10)
SETTLED = ("ggn", "secnn", "always", "restart", "dense")
LARGE = "kfac-1.007"
"""The setting of runs on CIFAR-10 beside the paper's: the ggn's kernel would be too large there."""
runs = Trial(
    "runs",
    (
        Factor("data", scaled(("digits",), ("digits",), ("digits", "cifar10"))),
        Factor("classes", scaled((2, 10), CLASSES, CLASSES)),
        Factor("setting", scaled(SETTLED, SETTLED, (*SETTLED, LARGE))),
        Factor("unit_norm", ("none", "calibrated")),
        Factor("noise", scaled((0.0,), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0))),
        Factor("epochs", scaled((10,), (60,), (60, 300))),
        seeds(2, 8, 8),
    ),
    (
        Table("final", {"arm": str} | dict.fromkeys(FINAL, float)),
        Table(
            "epochs", {"arm": str, "epoch": int} | dict.fromkeys(("parameters", "train_loss", "test", "held"), float)
        ),
        Table(
            "events",
            {
                "epoch": int,
                "event": str,
                "block": int,
                "channels": int,
                "parameters": float,
                "widths": list[float],
                "units": list[float],
            }
            | dict.fromkeys(("eta", "eta_layer", "eta_channel", "ratio", "df_eval", "df_train"), float),
        ),
        Table(
            "recoveries",
            {"epoch": int, "epochs_after": int} | dict.fromkeys(("before", "after", "box", "box_now", "left"), float),
        ),
        Table("times", dict.fromkeys(("train_s", "score_s"), float)),
    ),
    measure_runs,
    where=planned,
    cost=_seconds,
    memory=lambda cell: 1e8 if cell["data"] == "digits" else 8e9,
    gpus={"cluster": 1.0},
)


# --- How scores rank candidates ---------------------------------------------------------------------------------------

SCORED = {"digits": 96, "cifar10": 256}
"""Training images that the scores of ranked candidates are computed on."""
WIDER = (1, 2, 4, 8)


def measure_ranking(pack: Pack) -> pd.DataFrame:
    """Make every expansion by itself, train each with all examples at once, and compare scores with what it bought."""
    import torch
    from torch.nn import functional

    from theory.growth.candidates import score_candidates
    from theory.growth.decide import eligible
    from theory.growth.expand import add_channels, insert_identity
    from theory.growth.network import GrowingCNN, initial
    from theory.growth.scores import circulating_score, root
    from theory.growth.training import Training

    data, own, p = pack["data"], pack.column("seed"), PROTOCOLS[pack["data"]]
    parts = [task(data, pack["classes"], 0.0, seed).train for seed in own]
    x, y = (torch.stack(each).to(pack.device) for each in zip(*parts, strict=True))
    training = Training(
        initial(start(data, pack["classes"], "none"), own, device=pack.device),
        x,
        y,
        own,
        batch=p.batch,
        rate=p.rate,
        l1=p.l1,
        epoch_steps=p.epoch_steps,
    )
    while training.epoch < pack["checkpoint"]:
        training.finish_epoch()
    net = training.net.copy()
    candidates = eligible(net.architecture, channels=WIDER, capacity=p.capacity)
    made = [
        insert_identity(net, one.block)
        if one.kind == "identity"
        else add_channels(net, one.block, one.channels, seeds=own)
        for one in candidates
    ]
    images, targets = x[:, : SCORED[data]], functional.one_hot(y[:, : SCORED[data]], pack["classes"]).double()

    def circulating(one: GrowingCNN) -> torch.Tensor:
        f, taps = one.copy(torch.float64).taps(images.double())
        return circulating_score(root("emp_full", f, [tap for tap in taps if tap.kind != "site"], targets).rows)

    gains = {}
    for kind in ("ggn", "emp_diag"):
        found = score_candidates(
            net, [one.net for one in made], images, targets, kind=kind, damping=0.0 if kind == "emp_diag" else p.damping
        )
        gains[kind] = found.expanded - found.current
    gains["circulating"] = torch.stack([circulating(one.net) for one in made]) - circulating(net)
    losses = []
    for expansion in (None, *made):
        # All examples in every step: the order of examples no longer matters.
        other = Training.resumed(training.state() | {"batch": training.examples}, x, y)
        if expansion is not None:
            other.expand(expansion)
        other.run(pack["steps"])
        losses.append(other.step().double())
    extra = losses[0] - torch.stack(losses[1:])  # the drop without expansion, less
    names = [f"{one.kind} {one.block} +{one.channels}" for one in candidates]
    columns = {name: gain.T for name, gain in gains.items()}
    added = torch.tensor([one.added for one in candidates]).double().expand(len(own), -1)
    return pack.frame({"candidate": names}, added=added, extra=extra.T, **columns)


ranking = Trial(
    "ranking",
    (
        Factor("data", scaled(("digits",), ("digits",), ("digits", "cifar10"))),
        Factor("classes", (10,)),
        Factor("checkpoint", scaled((3,), (10, 25), (10, 25))),
        Factor("steps", scaled((5,), (40,), (40,))),
        seeds(2, 8, 5),
    ),
    (
        Table(
            "ranking", {"candidate": str} | dict.fromkeys(("added", "extra", "ggn", "emp_diag", "circulating"), float)
        ),
    ),
    measure_ranking,
    cost=lambda cell: 0.05 * cell["checkpoint"] + 0.22 * cell["steps"],
    memory=lambda cell: 2e8 if cell["data"] == "digits" else 6e10,
    gpus={"cluster": 1.0},
)

TRIALS = (runs, ranking)
