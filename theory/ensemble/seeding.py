"""Random numbers that depend on what they are for, never on where or when they are drawn.

Every draw names its stream by its parts, for instance `("init", seed, n, layer)`. A member of a pack therefore gets
the same initial weights and the same data order whether it is trained alone or with others, on a CPU or a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

Part = int | str | tuple[int, ...]

_STATE_WORDS = 624  # 32-bit words of state of the Mersenne Twister behind torch's CPU generator
_TEMPLATE = torch.Generator().manual_seed(0).get_state()  # uint8: seed, counters, 624 words of 8 bytes each, ...
_DRAW_DTYPE = torch.float32  # of every normal draw, so that float32 and float64 runs start from the same numbers


def stream(*parts: Part) -> torch.Generator:
    """Return a fresh CPU generator for the stream named by `parts` (integers, strings, tuples of integers).

    Equal parts give equal streams; the type counts, so 1 and "1" differ. The whole state of the generator comes from a
    hash of the parts: `manual_seed` would keep 32 bits only and let unrelated streams of a large sweep coincide.
    Raises TypeError for a part that has no exact text, such as a float, and ValueError for no parts.
    """
    if not parts:
        raise ValueError("a stream needs at least one part, for example stream('init', seed)")
    name = "\x1f".join(_spell(part) for part in parts)
    key = hashlib.shake_256(name.encode()).digest(4 * _STATE_WORDS)
    words = torch.from_numpy(np.frombuffer(key, dtype="<u4").astype(np.int64))
    state = _TEMPLATE.clone()
    state[24 : 24 + 8 * _STATE_WORDS] = words.view(torch.uint8)
    return torch.Generator().set_state(state)


def normal(
    shape: Sequence[int],
    *parts: Part,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return iid N(0, 1) draws of the given shape from the stream named by `parts`.

    The numbers are drawn on the CPU in single precision and then converted, so they are the same for every dtype and
    device. Raises as `stream` does.
    """
    return torch.randn(tuple(shape), generator=stream(*parts), dtype=_DRAW_DTYPE).to(device=device, dtype=dtype)


def batch_indices(examples: int, batch: int, steps: int, data_seed: int) -> torch.Tensor:
    """Return which examples each step sees, [steps, batch] of int64: every epoch is a fresh shuffle.

    Within an epoch no example repeats; the `examples % batch` left over are dropped. The first rows do not depend on
    `steps`. Raises ValueError if a batch is empty or larger than the data.
    """
    if not 1 <= batch <= examples:
        raise ValueError(f"batch = {batch} must lie between 1 and the number of examples, {examples}")
    if steps < 0:
        raise ValueError(f"steps = {steps} must not be negative")
    per_epoch = examples // batch
    epochs = [
        torch.randperm(examples, generator=stream("order", data_seed, examples, epoch))[: per_epoch * batch]
        for epoch in range(-(-steps // per_epoch))
    ]
    if not epochs:
        return torch.empty(0, batch, dtype=torch.int64)
    return torch.cat(epochs).view(-1, batch)[:steps]


def _spell(part: Part) -> str:
    if isinstance(part, str):
        return f"s{len(part)}:{part}"
    if isinstance(part, (tuple, list, torch.Size)):
        return "t(" + ",".join(_spell(entry) for entry in part) + ")"
    if isinstance(part, (int, np.integer)) and not isinstance(part, bool):
        return f"i{int(part)}"
    raise TypeError(f"{part!r} cannot name a random stream: use integers, strings or tuples of integers")
