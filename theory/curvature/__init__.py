"""Curvature of the loss: exact Hessians, their parts and spectra, for one network or a stack of them.

`MLPCurvature` and `ModuleCurvature` answer products, matrices and square roots of H = G + R; `eigenpairs` and `slq` find
the ends and the density of any spectrum from products alone; `outliers` counts what stands out, `tiers` says what
of G the classes make, and `loss_along` and `barrier` look between two solutions.
"""

from theory.curvature import outliers
from theory.curvature.base import PARTS, Curvature
from theory.curvature.lanczos import Eigenpairs, Tridiagonal, eigenpairs, lanczos
from theory.curvature.lines import barrier, line, loss_along
from theory.curvature.mlp import MLPCurvature
from theory.curvature.modules import ModuleCurvature
from theory.curvature.quadrature import Estimate, Quadrature, slq
from theory.curvature.random_matrix import bbp_critical, bbp_eigenvalue, edge_mean, spiked_spectrum
from theory.curvature.tiers import class_directions, row_weights, tiers, without_class

__all__ = [
    "PARTS",
    "Curvature",
    "Eigenpairs",
    "Estimate",
    "MLPCurvature",
    "ModuleCurvature",
    "Quadrature",
    "Tridiagonal",
    "barrier",
    "bbp_critical",
    "bbp_eigenvalue",
    "class_directions",
    "edge_mean",
    "eigenpairs",
    "lanczos",
    "line",
    "loss_along",
    "outliers",
    "row_weights",
    "slq",
    "spiked_spectrum",
    "tiers",
    "without_class",
]
