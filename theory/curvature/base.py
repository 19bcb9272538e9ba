"""What every curvature answers: loss, gradient, products, matrices and square roots of the Hessian and its parts.

For N examples with losses ℓ_i of outputs f(x_i), the loss is the MEAN L = (1/N) Σ_i ℓ_i, and with J_i = ∂f(x_i)/∂θ,
g_i = ∂ℓ_i/∂θ, r_i = ∂ℓ_i/∂f and A_i = ∂²ℓ_i/∂f²

    hessian    H = ∇²L = G + R
    ggn        G = (1/N) Σ_i J_iᵀ A_i J_i              Gauss-Newton on the logits; A = diag(p) − p pᵀ or the identity
    residual   R = (1/N) Σ_i Σ_c r_ic ∇²f_c(x_i)
    fisher     F = (1/N) Σ_i g_i g_iᵀ                  empirical Fisher: what Sagun et al. call the first term

The two first terms differ: Sagun et al. (arXiv:1706.04454, section 2.2) take f_i = p_{i,y_i} and ℓ = −log, which makes
the first term F. At interpolation F shrinks like (1−p)² but H like (1−p), so F does not stand for H there; G does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

PARTS = ("hessian", "ggn", "residual", "fisher")
ROOTED = ("ggn", "fisher")  # parts that are sums of squares, B with BᵀB = part
LOSS_NAMES = ("xent", "mse")

_ONE = 1e-6  # how far the sum of a row of probabilities may be from one


class Curvature(ABC):
    """Second-order structure of the mean loss of K networks of one shape on one data set; a snapshot.

    members, parameters, examples, outputs   K, M, N, d_o
    theta                                    [K, M] flat parameters; per layer the weight row-major, then the bias
    """

    members: int
    parameters: int
    examples: int
    outputs: int
    dtype: torch.dtype
    device: torch.device
    theta: Tensor

    @abstractmethod
    def loss(self, theta: Tensor | None = None) -> Tensor:
        """Return the mean loss [K] at theta [K, M], by default at the networks' own parameters."""

    @abstractmethod
    def gradient(self) -> Tensor:
        """Return ∇L, [K, M]."""

    @abstractmethod
    def f(self) -> Tensor:
        """Return the outputs (logits for xent), [K, N, d_o]."""

    @abstractmethod
    def product(self, v: Tensor, part: str = "hessian") -> Tensor:
        """Return part @ v for V vectors at once, [K, M, V] -> [K, M, V]."""

    @abstractmethod
    def matrix(self, part: str = "hessian") -> Tensor:
        """Return the part as an exactly symmetric matrix, [K, M, M]."""

    @abstractmethod
    def rows(self, part: str = "ggn") -> Tensor:
        """Return B, [K, R, M], with BᵀB = part; `part` is "ggn" (R = N d_o) or "fisher" (R = N).

        Row i d_o + a of the ggn is N^(-1/2) Σ_c S_ca ∂f_c(x_i)/∂θ with A_i = S Sᵀ: for xent S = diag(√p) − p √pᵀ, so
        the row is √(p_ia/N) J_iᵀ(e_a − p_i); for mse S = 1. Row i of the fisher is N^(-1/2) g_i.
        """

    def adjoint(self, q: Tensor, part: str = "ggn") -> Tensor:
        """Return Bᵀq for V vectors in row space, [K, R, V] -> [K, M, V], for B = `rows(part)`."""
        rows = self.rows(part)
        check_row_vectors(q, rows.shape[1], self.theta)
        return torch.bmm(rows.mT, q)

    def gram(self, part: str = "ggn") -> Tensor:
        """Return B Bᵀ, [K, R, R], for B = `rows(part)`: the nonzero eigenvalues of the part."""
        rows = self.rows(part)
        return torch.bmm(rows, rows.mT)


def mean_loss(loss: str, f: Tensor, y: Tensor) -> Tensor:
    """Return the loss [...] of outputs and targets [..., N, d_o]: the mean over examples, by differentiable operations."""
    if loss == "mse":
        return 0.5 * (f - y).square().sum(-1).mean(-1)
    return (torch.logsumexp(f, -1) - (f * y).sum(-1)).mean(-1)


def output_residual(loss: str, f: Tensor, y: Tensor) -> Tensor:
    """Return r = ∂ℓ/∂f of each example, [..., d_o]: p − y for xent, f − y for mse."""
    return (torch.softmax(f, -1) if loss == "xent" else f) - y


def output_hessian(loss: str, f: Tensor) -> Tensor:
    """Return A = ∂²ℓ/∂f² of each example, [..., d_o, d_o]: diag(p) − p pᵀ for xent, the identity for mse."""
    if loss == "mse":
        return torch.eye(f.shape[-1], dtype=f.dtype, device=f.device).expand(*f.shape, -1)
    p = torch.softmax(f, -1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def output_root(loss: str, f: Tensor) -> Tensor:
    """Return S with S Sᵀ = A, [..., d_o, d_o]: diag(√p) − p √pᵀ for xent, the identity for mse."""
    if loss == "mse":
        return output_hessian(loss, f)
    p = torch.softmax(f, -1)
    root = p.sqrt()
    return torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)


def check_part(part: str, known: tuple[str, ...] = PARTS) -> None:
    """Raise ValueError, naming the known ones, if `part` is not among them."""
    if part not in known:
        raise ValueError(f"unknown part {part!r}; there is {', '.join(known)}")


def check_loss(loss: str) -> None:
    """Raise ValueError, naming the known ones, if `loss` is not among them."""
    if loss not in LOSS_NAMES:
        raise ValueError(f"unknown loss {loss!r}; curvature knows {', '.join(LOSS_NAMES)}")


def check_precision(dtype: torch.dtype, precision: str) -> None:
    """Raise ValueError if the parameters are not of the precision asked for.

    Single precision has to be asked for: its rounding noise of about 1e-7 λ_1 √M looks like negative eigenvalues.
    """
    if precision not in ("float64", "float32"):
        raise ValueError(f"unknown precision {precision!r}; there is float64, float32")
    if dtype != getattr(torch, precision):
        name = str(dtype).removeprefix("torch.")
        remedy = (
            "convert the networks and the data with .double(), or pass precision='float32' and mistrust eigenvalues "
            "below 1e-7 λ_1 √M, which are rounding noise"
            if name == "float32"
            else f"convert them, or pass precision={name!r}"
        )
        raise ValueError(f"the parameters are {name}, curvature was asked for in {precision}: {remedy}")


def check_like(what: str, tensor: Tensor, theta: Tensor) -> None:
    """Raise ValueError unless `tensor` has the dtype and the device of the parameters."""
    if tensor.dtype != theta.dtype:
        raise ValueError(f"{what} is {tensor.dtype}, the parameters are {theta.dtype}: convert one of them")
    if tensor.device != theta.device:
        raise ValueError(f"{what} is on {tensor.device}, the parameters are on {theta.device}: move one of them")


def check_probabilities(y: Tensor) -> None:
    """Raise ValueError unless the rows of y are probabilities, as the targets of xent must be."""
    if bool((y < 0).any()) or bool(((y.sum(-1) - 1).abs() > _ONE).any()):
        raise ValueError("targets of xent must be probabilities: every row of y nonnegative with sum 1 (one-hot, soft)")


def check_vectors(v: Tensor, theta: Tensor) -> None:
    """Raise ValueError unless v is [K, M, V] like the parameters."""
    if v.dim() != 3 or v.shape[:2] != theta.shape:
        K, M = theta.shape
        raise ValueError(f"vectors must be [K, M, V] = [{K}, {M}, V], got {list(v.shape)}")
    check_like("v", v, theta)


def check_row_vectors(q: Tensor, rows: int, theta: Tensor) -> None:
    """Raise ValueError unless q is [K, R, V]."""
    K = theta.shape[0]
    if q.dim() != 3 or q.shape[:2] != (K, rows):
        raise ValueError(f"vectors in row space must be [K, R, V] = [{K}, {rows}, V], got {list(q.shape)}")
    check_like("q", q, theta)
