"""K networks as one program: independent initial weights, learning rates and data orders, shared matrix products."""

from theory.ensemble.activations import ACTIVATIONS, Activation, activation
from theory.ensemble.adamw import StackedAdamW, schedule
from theory.ensemble.losses import LOSSES, Loss, loss
from theory.ensemble.mlp import StackedMLP, States, gaussian_mlp
from theory.ensemble.modules import Ensemble
from theory.ensemble.seeding import batch_indices, normal, stream
from theory.ensemble.tangent import empirical_ntk
from theory.ensemble.training import Batches, FullBatch, chunks, members_per_chunk, snapshots, train

__all__ = [
    "ACTIVATIONS",
    "LOSSES",
    "Activation",
    "Batches",
    "Ensemble",
    "FullBatch",
    "Loss",
    "StackedAdamW",
    "StackedMLP",
    "States",
    "activation",
    "batch_indices",
    "chunks",
    "empirical_ntk",
    "gaussian_mlp",
    "loss",
    "members_per_chunk",
    "normal",
    "schedule",
    "snapshots",
    "stream",
    "train",
]
