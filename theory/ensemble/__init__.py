"""K networks as one program: independent initial weights, learning rates and data orders, shared matrix products."""

from theory.ensemble.activations import ACTIVATIONS, Activation, activation
from theory.ensemble.losses import LOSSES, Loss, loss
from theory.ensemble.mlp import StackedMLP, States
from theory.ensemble.modules import Ensemble
from theory.ensemble.seeding import batch_indices, normal, stream
from theory.ensemble.tangent import empirical_ntk
from theory.ensemble.training import Batches, chunks, members_per_chunk, train

__all__ = [
    "ACTIVATIONS",
    "LOSSES",
    "Activation",
    "Batches",
    "Ensemble",
    "Loss",
    "StackedMLP",
    "States",
    "activation",
    "batch_indices",
    "chunks",
    "empirical_ntk",
    "loss",
    "members_per_chunk",
    "normal",
    "stream",
    "train",
]
