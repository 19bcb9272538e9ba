"""The four tiers of the Gauss–Newton matrix: class, cross-class, within-class and diagonal.

Write G = BᵀB with rows b_(i,a) = √(p_ia / N) · J_iᵀ(e_a − p_i), row number i·k + a, one per example i and class a. Papyan
averages the gradients J_iᵀ(e_a − p_i), weighted by p_ia, over the examples of class c (giving δ_ca) and then over a ≠ c
(giving δ_c), and splits G into the scatter of the δ_c, of the δ_ca around them, of the examples around the δ_ca, and
the terms with a = y_i. In row space R^{N·k} each weighted mean is a product with a unit vector:

    u_ca ∝ √p_ia · 1[y_i = c] for rows (i, a),  a ≠ c,      Bᵀu_ca = √W_ca · δ_ca,
    q_c  ∝ √p_ia · 1[y_i = c, a ≠ c]  =  Σ_a √(W_ca / w_c) · u_ca,   Bᵀq_c = √w_c · δ_c,

with W_ca = Σ_{i: y_i = c} p_ia / N and w_c = Σ_{a ≠ c} W_ca. The supports are disjoint, so all u_ca are orthonormal, and
so are all q_c. Hence every tier is Bᵀ P B for one of four orthogonal projectors that add up to the identity:

    class     P = Σ_c q_c q_cᵀ                  rank ≤ k: the outliers
    cross     P = Σ_ca u_ca u_caᵀ − Σ_c q_c q_cᵀ    rank ≤ k(k − 2): the second tier
    within    P = the rows a ≠ y_i, less Σ_ca u_ca u_caᵀ
    diagonal  P = the rows a = y_i

`p` [K, N, k] are the softmax outputs of K networks under cross-entropy; for the squared error, where
b_(i,a) = J_iᵀe_a / √N, they are ones (see `row_weights`). `labels` are integers in 0..k−1, [N] shared or [K, N]. A class
without examples, and a mean whose weights vanish, gives a zero column. Every function raises ValueError for shapes
that do not fit and labels out of range.

Source of the tiers: Papyan 2019, arXiv:1901.08244, and 2020, arXiv:2008.11865; the projectors are derived here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TIERS = ("class", "cross", "within", "diagonal")


def row_weights(outputs: Tensor, loss: str) -> Tensor:
    """Return the weights p that the tiers use, from outputs f of any shape [..., k].

    The softmax of f for loss "xent", ones for "mse". Raises ValueError for another loss.
    """
    if loss == "xent":
        return outputs.softmax(-1)
    if loss == "mse":
        return torch.ones_like(outputs)
    raise ValueError(f"tiers are defined for the losses 'xent' and 'mse', not {loss!r}")


def class_directions(p: Tensor, labels: Tensor) -> Tensor:
    """Return the unit vectors q_c as columns, [K, N·k, k]: orthonormal, but for zero columns of absent classes."""
    split = _Split.of(p, labels)
    q = split.s.unsqueeze(3) * split.members.mT.unsqueeze(2)  # [K, N, a, c]
    return (q * split.per_class[:, None, None, :]).flatten(1, 2)


def cross_directions(p: Tensor, labels: Tensor) -> Tensor:
    """Return an orthonormal basis of the range of P_cross, [K, N·k, k(k − 2)], k − 2 columns per class in turn.

    Columns are zero where a class or a mean is absent; for k ≤ 2 there are none. Dense: `tiers` and `spectra` apply
    the projector without it.
    """
    split = _Split.of(p, labels)
    basis = split.per_pair.unsqueeze(3) * split.cross_basis()  # [K, c, a, k - 2]
    return torch.einsum("zna,zcn,zcaj->znacj", split.s, split.members, basis).flatten(3).flatten(1, 2)


def without_class(product: Callable[[Tensor], Tensor], factors: Tensor) -> Callable[[Tensor], Tensor]:
    """Return v ↦ A v − D(Dᵀv) for a product v ↦ A v on [K, M, V] and D = `factors` [K, M, k].

    With A the Hessian and D = BᵀQ, `curvature.adjoint(class_directions(p, labels))`, so that D Dᵀ = G_class, the largest eigenvalue of this operator is the class edge: by Weyl's
    inequality at most k eigenvalues of the Hessian lie above it.
    """
    return lambda v: torch.baddbmm(product(v), factors, factors.mT @ v, alpha=-1)


def tiers(rows: Tensor, p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the four tiers as matrices [K, M, M], by name; they add up to BᵀB. `rows` is B, [K, N·k, M]."""
    split = _Split.of(p, labels)
    b = split.by_example(rows)
    parts = (part(b) for part in split.maps())
    return {name: part.mT @ part for name, part in zip(TIERS, parts, strict=True)}


def spectra(gram: Tensor, p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the eigenvalues of the four tiers, descending, from the Gram matrix BBᵀ [K, N·k, N·k] alone.

    They are those of the tier in row space: k of "class", k(k − 2) of "cross", N(k − 1) of "within" and N of
    "diagonal". All further eigenvalues of the [M, M] tier are zero, and so are the last of these lists where they
    are longer than its rank. Zeros can come out negative at rounding level.
    """
    split = _Split.of(p, labels)
    K, N, k = split.s.shape
    if gram.shape != (K, N * k, N * k):
        raise ValueError(f"gram must be [K, N·k, N·k] = {[K, N * k, N * k]}, got {list(gram.shape)}")
    found = {}
    for name, apply in zip(TIERS, split.maps(), strict=True):
        half = apply(gram.unflatten(1, (N, k)))  # A T for the map A and the Gram matrix T, [K, r, N·k]
        both = apply(half.mT.unflatten(1, (N, k)))  # A (A T)ᵀ = A T Aᵀ
        found[name] = torch.linalg.eigvalsh((both + both.mT) / 2).flip(-1)
    return found


@dataclass(frozen=True)
class _Split:
    """The weighted means of rows over examples and classes, as maps of B, given as b [K, N, k, M].

    s         √p_ia off the labels, zero on them, [K, N, k]
    members   1[y_i = c], [K, k, N]
    per_class 1/√(N w_c), [K, k]; zero where the class is absent
    per_pair  1/√(N W_ca), [K, c, a]; zero where the mean is absent
    """

    s: Tensor
    members: Tensor
    per_class: Tensor
    per_pair: Tensor

    @classmethod
    def of(cls, p: Tensor, labels: Tensor) -> _Split:
        """Check p [K, N, k] and labels, and weigh the rows."""
        if p.dim() != 3:
            raise ValueError(f"p must be [K, N, k], got {list(p.shape)}")
        K, N, k = p.shape
        if labels.shape not in ((N,), (K, N)) or labels.dtype not in _INTEGERS:
            raise ValueError(f"labels must be integers [{N}] or [{K}, {N}], got {labels.dtype} {list(labels.shape)}")
        if N and not 0 <= int(labels.min()) <= int(labels.max()) < k:
            raise ValueError(f"labels must lie in 0..{k - 1}, got {int(labels.min())}..{int(labels.max())}")
        if not bool((p >= 0).all()):
            raise ValueError("p holds negative or undefined numbers: pass probabilities, not logits")
        classes = torch.arange(k, device=p.device)[:, None]
        members = (labels.to(p.device).expand(K, N)[:, None, :] == classes).to(p.dtype)
        s = p.sqrt() * (1 - members.mT)
        pairs = members @ s.square()  # N W_ca
        return cls(s, members, _inverse_root(pairs.sum(2)), _inverse_root(pairs))

    def by_example(self, rows: Tensor) -> Tensor:
        """Return B [K, N·k, M] as [K, N, k, M]."""
        K, N, k = self.s.shape
        if rows.dim() != 3 or rows.shape[:2] != (K, N * k):
            raise ValueError(f"rows must be [K, N·k, M] = [{K}, {N * k}, M], got {list(rows.shape)}")
        return rows.unflatten(1, (N, k))

    def maps(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return for each of `TIERS` a map A with AᵀA = P, from b to A B."""
        return self.class_means, self.cross_means, self.within, self.diagonal

    def class_means(self, b: Tensor) -> Tensor:
        """QᵀB, [K, k, M]."""
        return (self.members @ torch.einsum("zna,znam->znm", self.s, b)) * self.per_class.unsqueeze(2)

    def pair_means(self, b: Tensor) -> Tensor:
        """UᵀB, [K, c, a, M]; zero for c = a."""
        sums = (self.members @ (self.s.unsqueeze(3) * b).flatten(2)).unflatten(2, b.shape[2:])
        return sums * self.per_pair.unsqueeze(3)

    def cross_means(self, b: Tensor) -> Tensor:
        """The part of UᵀB orthogonal to QᵀB, [K, k(k − 2), M]."""
        return torch.einsum("zcaj,zcam->zcjm", self.cross_basis(), self.pair_means(b)).flatten(1, 2)

    def within(self, b: Tensor) -> Tensor:
        """The rows a ≠ y_i less their projection on U, [K, N(k − 1), M]."""
        means = (self.pair_means(b) * self.per_pair.unsqueeze(3)).flatten(2)
        part = (b - self.s.unsqueeze(3) * (self.members.mT @ means).unflatten(2, b.shape[2:])).flatten(1, 2)
        N, k = self.s.shape[1:]
        order = self.members.mT.flatten(1).argsort(stable=True, dim=1)  # rows a = y_i last
        return part.gather(1, order[:, : N * (k - 1), None].expand(-1, -1, part.shape[2]))

    def diagonal(self, b: Tensor) -> Tensor:
        """The rows a = y_i, [K, N, M]."""
        return torch.einsum("zcn,zncm->znm", self.members, b)

    def cross_basis(self) -> Tensor:
        """Per class an orthonormal basis, [K, c, a, k − 2], of the vectors over a ≠ c orthogonal to √(W_ca).

        It is the Householder reflection that sends v = √(W_ca / w_c) to a multiple of the unit vector of the largest
        entry π of v, less column π and the empty column a = c. Entries with W_ca = 0 then stay out of every column
        but their own, which becomes zero with u_ca.
        """
        k = self.s.shape[2]
        own = torch.eye(k, dtype=torch.bool, device=self.s.device)
        v = (self.members @ self.s.square()).sqrt() * self.per_class.unsqueeze(2)
        pivot = v.masked_fill(own, -1.0).argmax(2, keepdim=True)  # [K, c, 1]
        u = v.scatter_add(2, pivot, torch.ones_like(v))  # no cancellation, as v ≥ 0
        outer = u.unsqueeze(3) * u.unsqueeze(2)
        reflection = torch.eye(k, dtype=v.dtype, device=v.device) - 2 * outer / u.square().sum(2)[..., None, None]
        dropped = own.expand_as(v).scatter(2, pivot, True)
        kept = dropped.to(torch.int8).argsort(stable=True, dim=2)[..., : max(k - 2, 0)]
        return reflection.gather(3, kept.unsqueeze(2).expand(-1, -1, k, -1))


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _inverse_root(weights: Tensor) -> Tensor:
    """1/√w, and 0 where w is too small to be known to full precision: that mean is absent, its rows stay "within"."""
    numbers = torch.finfo(weights.dtype)
    present = weights > numbers.tiny / numbers.eps
    return torch.where(present, weights, 1.0).rsqrt() * present
