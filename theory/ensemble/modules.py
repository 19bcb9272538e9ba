"""K copies of any `nn.Module`, each with its own parameters and learning rate, trained as one program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap


class Ensemble:
    """Models of one architecture trained side by side with `torch.func.vmap`: the general tool beside `StackedMLP`.

    models      K modules of equal class and shapes; their parameters are copied
    lr          learning rate, one number or one per member
    optimizer   "sgd" (with `momentum`) or "adam" (with `betas` and `eps`), as in `torch.optim`
    chunk       members evaluated at a time, which bounds the memory of activations; None for all

    Buffers are kept as they are, so a model must not change them: BatchNorm that updates running statistics raises
    ValueError. Dropout draws different masks per member, from torch's global generator: such a member does depend on
    its place in the pack, unlike all else here. Raises ValueError too for no models, an unknown optimizer, or a
    number of learning rates that is neither 1 nor K.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        lr: float | Sequence[float] | Tensor,
        *,
        optimizer: str = "sgd",
        momentum: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        chunk: int | None = None,
    ) -> None:
        if not models:
            raise ValueError("an ensemble needs at least one model")
        if optimizer not in ("sgd", "adam"):
            raise ValueError(f"unknown optimizer {optimizer!r}; there is 'sgd' and 'adam'")
        for model in models:
            _check_buffers(model)
        stacked, self.buffers = stack_module_state(list(models))
        self.parameters: dict[str, Tensor] = {name: p.detach() for name, p in stacked.items()}
        self.members = len(models)
        self.lr = torch.as_tensor(lr, dtype=torch.float64).flatten()
        if len(self.lr) not in (1, self.members):
            raise ValueError(f"lr has {len(self.lr)} entries, the ensemble has {self.members} members")
        self.lr = self.lr.expand(self.members)
        self.optimizer, self.momentum, self.betas, self.eps = optimizer, momentum, betas, eps
        self.chunk, self.steps = chunk, 0
        self._model = copy.deepcopy(models[0]).to("meta")
        moments = 2 if optimizer == "adam" else int(momentum != 0)
        self._moments = {name: [torch.zeros_like(p) for _ in range(moments)] for name, p in self.parameters.items()}

    def step(
        self, loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, shared: bool = False
    ) -> Tensor:
        """Take one optimiser step and return the losses [K] before it.

        `loss_fn(output, y)` is the scalar loss of one member. x and y have a leading dimension K, or none of it if
        they are `shared` by all members.
        """

        def loss_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return loss_fn(functional_call(self._model, (parameters, buffers), (x,)), y)

        data = None if shared else 0
        gradients, losses = self._vmap(grad_and_value(loss_of), (0, 0, data, data))(self.parameters, self.buffers, x, y)
        self.steps += 1
        with torch.no_grad():
            for name, p in self.parameters.items():
                rate = self.lr.to(p).view(-1, *[1] * (p.dim() - 1))
                p.sub_(self._direction(self._moments[name], gradients[name]).mul_(rate))
        return losses

    def predict(self, x: Tensor, *, shared: bool = True) -> Tensor:
        """Return the outputs [K, ...] on inputs that all members share, or on their own ones, x[k]."""

        def output(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self._model, (parameters, buffers), (x,))

        with torch.no_grad():
            return self._vmap(output, (0, 0, None if shared else 0))(self.parameters, self.buffers, x)

    def state_dict(self, member: int) -> dict[str, Tensor]:
        """Return the parameters and buffers of one member, for `load_state_dict` of its module."""
        return {name: t[member].clone() for name, t in {**self.parameters, **self.buffers}.items()}

    def _vmap(self, function: Callable, in_dims: tuple) -> Callable:
        return vmap(function, in_dims=in_dims, randomness="different", chunk_size=self.chunk)

    def _direction(self, moments: list[Tensor], g: Tensor) -> Tensor:
        """Return what the learning rate multiplies, as a tensor that may be overwritten."""
        if self.optimizer == "sgd":
            return moments[0].mul_(self.momentum).add_(g).clone() if moments else g
        first, second = moments
        (beta1, beta2), t = self.betas, self.steps
        first.lerp_(g, 1 - beta1)
        second.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        scale = (second / (1 - beta2**t)).sqrt_().add_(self.eps)
        return (first / (1 - beta1**t)).div_(scale)


def _check_buffers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "track_running_stats", False) and module.training:
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__} in training mode: it would change its running "
                "statistics, which an ensemble keeps fixed; use GroupNorm, track_running_stats=False, or eval()"
            )
