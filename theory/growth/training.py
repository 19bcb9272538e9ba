"""Training of growing networks and of their static twins: Adam whose state follows expansions, in an order fixed by seeds.

The K members of a network train together, each on its own order of examples. The whole of a run is its `state`: taken
up again it continues as if it had never stopped, bit for bit.

Adam: Kingma & Ba 2015, arXiv 1412.6980, algorithm 1. A number that an expansion added starts with zero moments and its
own step count, so that its bias correction is that of a new parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from theory.ensemble.seeding import stream
from theory.growth.expand import Expansion
from theory.growth.network import Architecture, GrowingCNN

BETAS = (0.9, 0.999)
EPSILON = 1e-8
_NUMBERS = ("rate", "batch", "l1", "epoch_steps", "steps", "data_seeds", "born")
_TENSORS = ("parameters", "buffers", "first", "second", "ages")


class Training:
    """A network in training on cross entropy plus l1 Σ|θ|, by Adam on mini-batches of equal size.

    net         trained in place: its tensors become this object's own
    x, y        images [N, c, h, w] and classes [N], shared by all members, or [K, N, c, h, w] and [K, N] those of each
    data_seeds  one per member; members with equal seeds see the same examples (see `order`)
    batch       examples per step; the N % batch left over at the end of a pass are dropped
    rate        Adam's learning rate; may be changed at any time
    l1          coefficient of Σ|θ|, over all parameters
    epoch_steps steps that count as one epoch, for runs on more or fewer examples that are to train alike; 0: one pass
    steps       taken so far

    Raises ValueError for data that do not pair up or fit the network, another number of seeds than members, a batch
    that is empty or larger than N, or negative epoch_steps.
    """

    def __init__(
        self,
        net: GrowingCNN,
        x: Tensor,
        y: Tensor,
        data_seeds: Sequence[int],
        *,
        batch: int = 128,
        rate: float = 5e-3,
        l1: float = 0.0,
        epoch_steps: int = 0,
    ) -> None:
        self.x, self.y, self.data_seeds = x, y, tuple(data_seeds)
        self.batch, self.rate, self.l1 = batch, rate, l1
        self.steps = 0
        self.examples = check_data(net, x, y)
        if len(self.data_seeds) != net.members:
            raise ValueError(f"{net.members} members need as many data seeds, got {self.data_seeds}")
        if not 1 <= batch <= self.examples:
            raise ValueError(f"batch = {batch} must lie between 1 and the number of examples, {self.examples}")
        if epoch_steps < 0:
            raise ValueError(f"epoch_steps = {epoch_steps} must be positive, or 0 for one pass")
        self.epoch_steps = epoch_steps or self.examples // batch
        self._order = (-1, torch.empty(0))
        zeros = {name: torch.zeros_like(p) for name, p in net.parameters.items()}
        ages = {name: torch.zeros(p.shape[1:], dtype=torch.int64) for name, p in net.parameters.items()}
        self._born = [0]
        self._adopt(net, zeros, zeros, ages)

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return self.steps // self.epoch_steps

    def step(self) -> Tensor:
        """Take one step and return the cross entropy of its batch before the update, [K]."""
        x, y = self._next()
        f = self.net.forward(x, train=True, track=True)
        K, B = f.shape[:2]
        losses = functional.cross_entropy(f.flatten(0, 1), y.reshape(-1), reduction="none").view(K, B).mean(1)
        leaves = list(self.net.parameters.values())
        gradients = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)
        self.steps += 1
        with torch.no_grad():
            g = torch.cat([gradient.flatten() for gradient in gradients])
            if self.l1:
                g.add_(self._theta.sign(), alpha=self.l1)
            self._adam(g)
        return losses.detach()

    def run(self, steps: int) -> Tensor:
        """Take some steps and return the mean of their losses, [K]; ValueError for less than one."""
        if steps < 1:
            raise ValueError(f"steps = {steps} must be at least 1")
        return torch.stack([self.step() for _ in range(steps)]).mean(0)

    def finish_epoch(self) -> Tensor:
        """Take the steps that are left of the current epoch, at least one, and return the mean of their losses, [K]."""
        return self.run(self.epoch_steps - self.steps % self.epoch_steps)

    def expand(self, expansion: Expansion) -> None:
        """Go on with the expanded network: old numbers keep their moments and step counts, new ones start fresh.

        Raises ValueError if the expansion is one of another network than this one as it is now.
        """
        old = self.net.parameters
        kept = expansion.removed().parameters if expansion.before == self.net.architecture else {}
        if kept.keys() != old.keys() or not all(torch.equal(kept[name], p) for name, p in old.items()):
            raise ValueError("this is no expansion of the network in training: expand `training.net` as it is now")
        first, second = (expansion.carry(self._named(flat)) for flat in (self._first, self._second))
        newborn = len(self._born)
        self._born.append(self.steps)
        ages = {name: age.unsqueeze(0) for name, age in self._ages.items()}
        self._adopt(
            expansion.net, first, second, {name: age[0] for name, age in expansion.carry(ages, newborn).items()}
        )

    def state(self) -> dict[str, Any]:
        """Return all that a continued run needs but the data: a dict of tensors (copies), numbers, strings and tuples."""
        return {
            "architecture": vars(self.net.architecture).copy(),
            "parameters": _copies(self.net.parameters),
            "buffers": _copies(self.net.buffers),
            "first": _copies(self._named(self._first)),
            "second": _copies(self._named(self._second)),
            "ages": _copies(self._ages),
            "born": tuple(self._born),
            **{name: getattr(self, name) for name in _NUMBERS[:-1]},
        }

    @classmethod
    def resumed(cls, state: Mapping[str, Any], x: Tensor, y: Tensor) -> Training:
        """Return the run that `state` came from, on the same data; the state is not touched.

        On another batch size or learning rate after a change of the state's "batch" or "rate": the order of examples is
        then that of a run of as many steps at that batch size. Raises ValueError for a state with parts missing, and as
        the constructor.
        """
        missing = sorted({"architecture", *_NUMBERS, *_TENSORS} - state.keys())
        if missing:
            raise ValueError(f"the state of a run lacks {', '.join(missing)}")
        net = GrowingCNN(Architecture(**state["architecture"]), state["parameters"], state["buffers"]).copy()
        settings = {name: state[name] for name in ("batch", "rate", "l1", "epoch_steps")}
        run = cls(net, x, y, state["data_seeds"], **settings)
        run.steps, run._born = state["steps"], list(state["born"])
        run._adopt(net, state["first"], state["second"], _copies(state["ages"]))
        return run

    def _adopt(
        self,
        net: GrowingCNN,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        ages: dict[str, Tensor],
    ) -> None:
        """Make the network's tensors views of one vector, so that Adam is a few operations on it.

        `ages` says of every number in which of the expansions `_born` it came: its steps are those since.
        """
        self.net = net
        self._shapes = {name: p.shape for name, p in net.parameters.items()}
        self._theta, self._first, self._second = (
            torch.cat([tensors[name].detach().flatten() for name in self._shapes])
            for tensors in (net.parameters, first, second)
        )
        net.parameters = {name: p.detach().requires_grad_() for name, p in self._named(self._theta).items()}
        net.buffers = _copies(net.buffers)
        self._ages = ages
        K = net.members
        self._age = torch.cat([ages[name].expand(K, *ages[name].shape).flatten() for name in self._shapes]).to(
            self._theta.device
        )

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a vector by parameter name."""
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def _adam(self, g: Tensor) -> None:
        beta1, beta2 = BETAS
        self._first.lerp_(g, 1 - beta1)
        self._second.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        ages = [self.steps - born for born in self._born]
        lengths = g.new_tensor([self.rate / (1 - beta1**t) if t else 0.0 for t in ages])  # by age, then by number
        roots = g.new_tensor([(1 - beta2**t) ** -0.5 if t else 0.0 for t in ages])
        if len(ages) > 1:
            lengths, roots = lengths[self._age], roots[self._age]
        below = self._second.sqrt().mul_(roots).add_(EPSILON)
        self._theta.addcdiv_(self._first * lengths, below, value=-1)

    def _next(self) -> tuple[Tensor, Tensor]:
        """Return images and classes of the step to take, [K, B, ...] and [K, B]."""
        passed, step = divmod(self.steps, self.examples // self.batch)
        if self._order[0] != passed:
            rows = {seed: order(self.examples, seed, passed) for seed in dict.fromkeys(self.data_seeds)}
            self._order = (passed, torch.stack([rows[seed] for seed in self.data_seeds]).to(self.x.device))
        rows_now = self._order[1][:, step * self.batch : (step + 1) * self.batch]
        if self.x.dim() == 4:
            return self.x[rows_now], self.y[rows_now]
        members = torch.arange(len(rows_now), device=self.x.device).unsqueeze(1)
        return self.x[members, rows_now], self.y[members, rows_now]


def order(examples: int, data_seed: int, passed: int) -> Tensor:
    """Return the order of examples in a pass, [N]: that of `theory.ensemble.batch_indices`, a pass at a time."""
    return torch.randperm(examples, generator=stream("order", data_seed, examples, passed))


def evaluate(net: GrowingCNN, x: Tensor, y: Tensor, rows: int = 512) -> tuple[Tensor, Tensor]:
    """Return the mean cross entropy and the accuracy of each member in inference mode, [K] each.

    x and y as for `Training`; `rows` examples at a time to bound memory. Raises ValueError for data that do not pair up.
    """
    N = check_data(net, x, y)
    loss, right = (torch.zeros(net.members, dtype=torch.float64, device=x.device) for _ in range(2))
    for first in range(0, N, rows):
        some, classes = x[..., first : first + rows, :, :, :], y[..., first : first + rows]
        with torch.no_grad():
            f = net.forward(some)
        classes = classes.expand(f.shape[:2])
        loss += functional.cross_entropy(f.mT, classes, reduction="none").sum(1)
        right += (f.argmax(2) == classes).sum(1)
    return loss / N, right / N


def check_data(net: GrowingCNN, x: Tensor, y: Tensor) -> int:
    """Return N; ValueError unless x and y pair up and fit the network."""
    if x.dim() not in (4, 5) or x.shape[:-3] != y.shape or (x.dim() == 5 and len(x) != net.members) or not len(y):
        raise ValueError(
            f"x {list(x.shape)} and y {list(y.shape)} must be [N, c, h, w] and [N], or both with K = {net.members}"
        )
    if x.dtype != net.dtype or y.dtype != torch.int64:
        raise ValueError(f"x must be {net.dtype} as the network is, and y int64, got {x.dtype} and {y.dtype}")
    classes = net.architecture.classes
    if not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"classes in y must lie in 0..{classes - 1}, got {int(y.min())}..{int(y.max())}")
    return y.shape[-1]


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors.items()}
