"""Curvature of any `nn.Module` by `torch.func`: forward over reverse derivatives, vectorised over members and vectors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap

from theory.curvature.base import (
    ROOTED,
    Curvature,
    check_like,
    check_loss,
    check_part,
    check_precision,
    check_probabilities,
    check_vectors,
    mean_loss,
    output_hessian,
    output_residual,
    output_root,
)

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Models: TypeAlias = nn.Module | Sequence[nn.Module]

_PROBE = 64  # examples on which models and losses are tried out
_ASYMMETRY = 1e5  # rounding errors of the largest entry by which a matrix may differ from its transpose


class ModuleCurvature(Curvature):
    """Curvature of the mean loss of one module, or of K modules of one class and shape; a snapshot.

    models   modules mapping inputs [n, ...] to outputs [n, d_o], every example by itself
    x, y     [N, ...] and [N, d_o], shared by all members; or both with a leading K. For "xent" y holds probabilities
             or, as integers [N] or [K, N], classes
    loss     "xent", "mse" (½ sum of squares), or a function of outputs [n, d_o] and targets [n, ...] that is a mean
             over examples; with a function, data are shared
    chunk    member × example × vector combinations evaluated at a time, which bounds the memory of activations

    Raises ValueError for what would give a wrong spectrum: float32 parameters unless precision="float32" (see
    `base.check_precision`); data of another dtype or device; shapes that do not pair; no data; an unknown loss; a loss
    that is no mean over examples; models that differ in class or shape, have no parameters or frozen ones, mix
    examples (BatchNorm on batch statistics), or draw random numbers (Dropout in training mode).
    """

    def __init__(
        self,
        models: Models,
        x: Tensor,
        y: Tensor,
        loss: str | LossFunction,
        *,
        precision: str = "float64",
        chunk: int = 8192,
    ) -> None:
        models = [models] if isinstance(models, nn.Module) else list(models)
        _check_models(models)
        if chunk < 1:
            raise ValueError(f"chunk = {chunk} must be positive")
        parameters = [dict(model.named_parameters()) for model in models]
        buffers = [dict(model.named_buffers()) for model in models]
        self._shapes = {name: p.shape for name, p in parameters[0].items()}
        self.theta = torch.stack([torch.cat([p.detach().flatten() for p in ps.values()]) for ps in parameters])
        check_precision(self.theta.dtype, precision)
        self._buffers = {name: torch.stack([b[name].detach() for b in buffers]) for name in buffers[0]}
        self._model = copy.deepcopy(models[0])
        self.members, self.parameters = self.theta.shape
        self.dtype, self.device = self.theta.dtype, self.theta.device
        if isinstance(loss, str):
            check_loss(loss)
        self.loss_name = loss if isinstance(loss, str) else ""
        self._loss: LossFunction = partial(mean_loss, loss) if isinstance(loss, str) else loss
        self._chunk = chunk
        self._set_data(models, x, y)

    @classmethod
    def from_loader(
        cls, models: Models, loader: Iterable[Any], loss: str | LossFunction, **options: Any
    ) -> ModuleCurvature:
        """Return the curvature on all examples (x, y) of a loader, however large its batches: a mean over examples.

        The loader is gone through twice; ValueError if the second time brings other batches, as shuffling and random
        augmentation do. Data of lower precision are converted, exactly, to that of the models.
        """
        batches = [_pair(batch) for batch in loader]
        for number, (first, again) in enumerate(zip_longest(batches, loader)):
            if first is None or again is None or not all(map(torch.equal, first, _pair(again))):
                raise ValueError(
                    f"the loader yields other data in its second pass (batch {number}): switch off shuffling and random "
                    "augmentation, or the Hessian would be that of no loss in particular"
                )
        if not batches:
            raise ValueError("no examples: the loader is empty")
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        some = models if isinstance(models, nn.Module) else next(iter(models), None)
        wanted = next((p.dtype for p in some.parameters()), x.dtype) if some is not None else x.dtype
        x, y = (t.to(torch.promote_types(t.dtype, wanted)) if t.is_floating_point() else t for t in (x, y))
        return cls(models, x, y, loss, **options)

    def _set_data(self, models: Sequence[nn.Module], x: Tensor, y: Tensor) -> None:
        labels = self.loss_name == "xent" and not y.is_floating_point()
        own = bool(self.loss_name) and y.dim() == (2 if labels else 3)  # every member has data of its own
        lead = (self.members,) if own else ()
        if x.numel() == 0 or y.numel() == 0:
            raise ValueError(f"no examples: x is {list(x.shape)}, y is {list(y.shape)}")
        if own and not tuple(x.shape[:1]) == tuple(y.shape[:1]) == lead:
            raise ValueError(
                f"y {list(y.shape)} has data for each member, so x and y need the leading K = {self.members}, "
                f"x is {list(x.shape)}"
            )
        if x.shape[len(lead) :][:1] != y.shape[len(lead) :][:1]:
            raise ValueError(
                f"x {list(x.shape)} and y {list(y.shape)} do not pair: [N, ...] with [N, ...], or both with K"
            )
        for what, t in (("x", x), ("y", y)):
            if t.is_floating_point() or (what == "y" and self.loss_name and not labels):
                check_like(what, t, self.theta)
        self.examples = x.shape[len(lead)]
        self._own, self._x, self._y = 0 if own else None, x, y
        outputs = [_try_out(model, x[index] if own else x) for index, model in enumerate(models)]
        self.outputs = outputs[0].shape[1]
        if labels:
            if not 0 <= int(y.min()) <= int(y.max()) < self.outputs:
                raise ValueError(f"classes in y must lie in 0..{self.outputs - 1}, got {int(y.min())}..{int(y.max())}")
            self._y = nn.functional.one_hot(y.long(), self.outputs).to(self.dtype)
        elif self.loss_name:
            if y.shape[len(lead) + 1 :] != (self.outputs,):
                raise ValueError(f"y {list(y.shape)} does not fit outputs [N, {self.outputs}]")
            if self.loss_name == "xent":
                check_probabilities(y)
        else:
            _check_mean(self._loss, outputs[0], y[:_PROBE])

    # -------------------------------------------------------------------------------- one member; theta is [M], x [n, ...]

    def _outputs(self, theta: Tensor, buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in self._shapes.values()])
        parameters = {name: part.view(self._shapes[name]) for name, part in zip(self._shapes, parts, strict=True)}
        return functional_call(self._model, (parameters, buffers), (x,))

    def _mean_loss(self, theta: Tensor, buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self._loss(self._outputs(theta, buffers, x), y)

    def _residual(self, f: Tensor, y: Tensor) -> Tensor:
        """Return r = ∂ℓ/∂f of each example, [n, d_o]."""
        if self.loss_name:
            return output_residual(self.loss_name, f, y)
        return vmap(grad(self._one_loss))(f, y)

    def _output_hessian(self, f: Tensor, y: Tensor) -> Tensor:
        """Return A = ∂²ℓ/∂f² of each example, [n, d_o, d_o]."""
        return output_hessian(self.loss_name, f) if self.loss_name else vmap(hessian(self._one_loss))(f, y)

    def _one_loss(self, f: Tensor, y: Tensor) -> Tensor:
        return self._loss(f.unsqueeze(0), y.unsqueeze(0))

    def _product(self, part: str, theta: Tensor, buffers: dict[str, Tensor], x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Return part @ v of the mean over these n examples, for rows of v [V, M]."""

        def outputs(theta: Tensor) -> Tensor:
            return self._outputs(theta, buffers, x)

        if part == "hessian":
            gradient = grad(lambda theta: self._mean_loss(theta, buffers, x, y))
        elif part == "residual":
            r = self._residual(outputs(theta), y) / x.shape[0]
            gradient = grad(lambda theta: (r * outputs(theta)).sum())
        if part in ("hessian", "residual"):
            return vmap(lambda t: jvp(gradient, (theta,), (t,))[1])(v)
        f, back = _vjp(outputs, theta)
        r = self._residual(f, y)
        A = self._output_hessian(f, y) if part == "ggn" else r.unsqueeze(2) * r.unsqueeze(1)

        def one(t: Tensor) -> Tensor:
            df = jvp(outputs, (theta,), (t,))[1]
            return back((A @ df.unsqueeze(2)).squeeze(2) / x.shape[0])

        return vmap(one)(v)

    def _rows(self, theta: Tensor, buffers: dict[str, Tensor], x: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_c weights[a,c] ∂f_c/∂θ of n examples, [n, a, M]."""

        def one(x: Tensor, weights: Tensor) -> Tensor:
            back = _vjp(lambda theta: self._outputs(theta, buffers, x.unsqueeze(0))[0], theta)[1]
            return vmap(back)(weights)

        return vmap(one)(x, weights)

    # ------------------------------------------------------------------------------------------------------- all members

    def f(self) -> Tensor:
        """Return the outputs (logits for xent), [K, N, d_o]."""
        return torch.cat([self._vmap(self._outputs, x) for _, x, _ in self._slices()], 1)

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """Return the mean loss [K] at theta [K, M], by default at the networks' own parameters."""
        if theta is not None and theta.shape != self.theta.shape:
            raise ValueError(f"theta must be [K, M] = {list(self.theta.shape)}, got {list(theta.shape)}")
        return self._mean(self._mean_loss, theta=theta)

    def gradient(self) -> Tensor:
        """Return ∇L, [K, M]."""
        return self._mean(grad(self._mean_loss))

    def product(self, v: Tensor, part: str = "hessian") -> Tensor:
        """Return part @ v for V vectors at once, [K, M, V] -> [K, M, V]."""
        check_part(part)
        check_vectors(v, self.theta)
        out = torch.empty_like(v)
        size = max(1, self._chunk // (self.members * min(self.examples, self._slice_size)))
        for first in range(0, v.shape[2], size):
            vectors = v[:, :, first : first + size].mT
            out[:, :, first : first + size] = self._mean(partial(self._product, part), own=(vectors,)).mT
        return out

    def matrix(self, part: str = "hessian") -> Tensor:
        """Return the part as an exactly symmetric matrix, [K, M, M]: the product with the identity, symmetrised.

        Raises RuntimeError if it is not symmetric up to rounding, as a wrong derivative inside the model would make it.
        """
        check_part(part)
        K, M = self.theta.shape
        out = self.theta.new_empty(K, M, M)
        size = max(1, self._chunk // (K * min(self.examples, self._slice_size)))
        for first in range(0, M, size):
            unit = self.theta.new_zeros(M, min(size, M - first))
            unit.diagonal(-first).fill_(1.0)
            out[:, :, first : first + size] = self.product(unit.expand(K, -1, -1), part)
        asymmetry, largest = float((out - out.mT).abs().max()), float(out.abs().max())
        if not asymmetry <= _ASYMMETRY * torch.finfo(self.dtype).eps * largest:
            raise RuntimeError(
                f"the {part} is not symmetric: entries up to {largest:.3g} differ from their mirror image by up to "
                f"{asymmetry:.3g}; a derivative inside the model is wrong or not finite"
            )
        return out.add(out.mT).mul_(0.5)

    def rows(self, part: str = "ggn") -> Tensor:
        """Return B, [K, R, M], with BᵀB = part; see `Curvature.rows`.

        For a loss given as a function S is any square root of ∂²ℓ/∂f²; ValueError if that is not positive semidefinite.
        """
        check_part(part, ROOTED)
        blocks = []
        for _, x, y in self._slices():
            f = self._vmap(self._outputs, x)
            if part == "fisher":
                weights = self._each(self._residual, f, y).unsqueeze(2)
            elif self.loss_name:
                weights = output_root(self.loss_name, f).mT
            else:
                weights = _root(self._each(self._output_hessian, f, y)).mT
            blocks.append(self._vmap(self._rows, x, own=(weights,)).flatten(1, 2))
        return torch.cat(blocks, 1).div_(self.examples**0.5)

    @property
    def _slice_size(self) -> int:
        return max(1, self._chunk // self.members)

    def _slices(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield a number of examples within the chunk, and their x and y."""
        for first in range(0, self.examples, self._slice_size):
            some = slice(first, min(first + self._slice_size, self.examples))
            x, y = (t[some] if self._own is None else t[:, some] for t in (self._x, self._y))
            yield some.stop - first, x, y

    def _mean(
        self, function: Callable[..., Tensor], *, own: tuple[Tensor, ...] = (), theta: Tensor | None = None
    ) -> Tensor:
        """Return the mean over all examples of what `function` gives for the mean over some, for every member."""
        parts = [self._vmap(function, x, y, own=own, theta=theta) * (n / self.examples) for n, x, y in self._slices()]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _vmap(
        self,
        function: Callable[..., Tensor],
        *data: Tensor,
        own: tuple[Tensor, ...] = (),
        theta: Tensor | None = None,
    ) -> Tensor:
        """Map `function(theta, buffers, *data, *own)` over the members; `own` always has a leading K."""
        dims = (0, 0, *[self._own] * len(data), *[0] * len(own))
        with warnings.catch_warnings():  # torch's own jvp is written with it
            warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
            return vmap(function, dims)(self.theta if theta is None else theta, self._buffers, *data, *own)

    def _each(self, function: Callable[[Tensor, Tensor], Tensor], f: Tensor, y: Tensor) -> Tensor:
        """Map `function(f, y)` over the members' outputs."""
        return vmap(function, (0, self._own))(f, y)


def _vjp(function: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the value at theta, and the map from u to uᵀ ∂value/∂theta."""
    value, back = vjp(function, theta)[:2]
    return value, lambda u: back(u)[0]


def _root(A: Tensor) -> Tensor:
    """Return S with S Sᵀ = A; ValueError if A has negative eigenvalues."""
    values, vectors = torch.linalg.eigh(A)
    if float(values.min()) < -1e-6 * max(1.0, float(values.max())):
        raise ValueError("the loss is not convex in the outputs, so its Gauss-Newton matrix has no real square root")
    return vectors * values.clamp(min=0.0).sqrt().unsqueeze(-2)


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
        raise ValueError(f"the loader must yield pairs (x, y) of tensors, got {type(batch).__name__}")
    return batch[0], batch[1]


def _check_models(models: Sequence[nn.Module]) -> None:
    """Raise ValueError for models without a well-defined curvature or of different shapes."""
    if not models:
        raise ValueError("curvature needs at least one model")
    wanted = _shape_of(models[0])
    for index, model in enumerate(models):
        if type(model) is not type(models[0]) or _shape_of(model) != wanted:
            raise ValueError(f"models must be of one class and shape, number {index} differs from number 0")
        parameters = dict(model.named_parameters())
        if not parameters:
            raise ValueError(f"{type(model).__name__} has no parameters")
        frozen = [name for name, p in parameters.items() if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"parameters without requires_grad: {', '.join(frozen)}; curvature is that of all parameters: make them "
                "trainable, or keep what is fixed in buffers"
            )
        kinds = {(p.dtype, p.device) for p in parameters.values()}
        if len(kinds) > 1:
            raise ValueError(f"parameters must share one dtype and device, got {sorted(map(str, kinds))}")
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                raise ValueError(
                    f"BatchNorm {name!r} normalises by the batch, so examples have no losses of their own: call .eval() "
                    "on the model (and keep track_running_stats)"
                )
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
                raise ValueError(f"Dropout {name!r} is active (p = {module.p}): call .eval() on the model")


def _try_out(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs on a few examples; ValueError if they are random, not [n, d_o], or depend on one another."""
    with torch.no_grad():
        f, again, alone = model(x[:_PROBE]), model(x[:_PROBE]), model(x[:1])
    if not torch.equal(f, again):
        raise ValueError(
            "the model is not deterministic, two forward passes differ: call .eval() on it and remove what draws random "
            "numbers"
        )
    if f.dim() != 2 or len(f) != min(len(x), _PROBE):
        raise ValueError(f"models must map [n, ...] to [n, d_o], {list(x[:_PROBE].shape)} became {list(f.shape)}")
    if not torch.allclose(f[:1], alone, rtol=1e-4, atol=1e-6):
        raise ValueError(
            "the model mixes examples: the output of one example depends on the others in its batch, so the loss is no "
            "mean over examples; normalise with fixed statistics"
        )
    return f


def _shape_of(model: nn.Module) -> tuple[str, dict[str, torch.Size]]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return str(model), {name: t.shape for name, t in tensors}


def _check_mean(loss: LossFunction, f: Tensor, y: Tensor) -> None:
    """Raise ValueError unless the loss is a mean over examples."""
    f = f + torch.arange(f.numel(), dtype=f.dtype, device=f.device).sin().view_as(f)  # away from a loss of zero
    once = loss(f, y)
    if once.dim() != 0:
        raise ValueError(f"the loss must be one number for a batch, got shape {list(once.shape)}")
    tolerance = 1e-4 * float(once.abs())
    twice = loss(torch.cat([f, f]), torch.cat([y, y]))
    if float((twice - once).abs()) > tolerance:
        raise ValueError(
            f"the loss is not a mean over examples: with every example twice it goes from {float(once):.6g} to "
            f"{float(twice):.6g}; a sum scales the whole spectrum by N: use reduction='mean'"
        )
    if len(f) > 1:
        split = (float(loss(f[:1], y[:1])) + (len(f) - 1) * float(loss(f[1:], y[1:]))) / len(f)
        if abs(split - float(once)) > tolerance:
            raise ValueError(
                "the loss is not a mean over examples: the means over two parts of a batch do not combine to that of the "
                "batch; drop class weights and whatever couples examples"
            )
