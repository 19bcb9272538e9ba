"""AdamW for K networks at once, each with a rate of its own, and the schedule of the rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class StackedAdamW:
    """AdamW (Loshchilov & Hutter 2019) on the rows of parameters [K, P], after clipping each row's gradient.

    Rates, decoupled weight decay and the largest gradient norm are one number or one per member [K]. Decay acts on all
    parameters, as in `torch.optim.AdamW` by default; `clip` = math.inf switches clipping off. Raises ValueError for
    numbers that are negative or not one per member.
    """

    def __init__(
        self,
        parameters: Tensor,
        rates: Tensor | float,
        *,
        weight_decay: Tensor | float = 0.0,
        clip: Tensor | float = math.inf,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        self.parameters, self.betas, self.eps = parameters, betas, eps
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas = {betas} must lie in [0, 1)")
        self.rates = _per_member(rates, parameters, "rates")
        self.weight_decay = _per_member(weight_decay, parameters, "weight_decay")
        self.clip = _per_member(clip, parameters, "clip")
        self._decays, self._clips = bool(self.weight_decay.any()), bool(self.clip.isfinite().any())
        self.m, self.v = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self.count = 0

    def step(self, gradients: Tensor, factor: float = 1.0) -> None:
        """Update the parameters with gradients [K, P], which are overwritten, at `factor` times the rates."""
        self.count += 1
        (first, second), t = self.betas, self.count
        if self._clips:
            norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            gradients.mul_((self.clip / (norms + 1e-6)).clamp_max(1.0))
        rates = self.rates * factor
        if self._decays:
            self.parameters.mul_(1 - rates * self.weight_decay)
        self.m.lerp_(gradients, 1 - first)
        self.v.mul_(second).addcmul_(gradients, gradients, value=1 - second)
        scale = torch.sqrt(self.v, out=gradients).mul_((1 - second**t) ** -0.5).add_(self.eps)
        change = torch.div(self.m, scale, out=gradients).mul_(rates * (-1 / (1 - first**t)))
        self.parameters.add_(change)


def schedule(step: int, steps: int, warmup: float = 0.05) -> float:
    """Return the factor on the rates at step 0 .. steps-1: a linear rise over `warmup` · steps, then a cosine to 0.

    The rise ends at 1 on its last step; the cosine would reach 0 at `steps`. Raises ValueError for a step or a
    warm-up that does not exist.
    """
    if not (0 <= step < steps and 0 <= warmup < 1):
        raise ValueError(f"step = {step} must lie in 0..{steps - 1} and warmup = {warmup} in [0, 1)")
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def _per_member(values: Tensor | float, parameters: Tensor, what: str) -> Tensor:
    """Return [K, 1] like the parameters."""
    K = parameters.shape[0]
    given = torch.as_tensor(values, dtype=parameters.dtype, device=parameters.device)
    if given.shape not in ((), (K,)) or not bool((given >= 0).all()):
        raise ValueError(f"{what} must be one number ≥ 0 or one for each of the {K} members, got {given.tolist()}")
    return given.expand(K).unsqueeze(1)
