"""The growing convolutional network of SECNN, K networks of one architecture as one program.

Blocks of units, a unit being conv 3×3, norm and activation; a 2×2 max pool ends a block. The first block also feeds a
skip: its output, pooled down to the size of the last block's, is concatenated in front of it. Then a 1×1 conv, and a
head of two linear layers,

    x → block 1 → … → block B;   [pool(block 1), block B] → 1×1 conv → φ → linear → (norm →) φ (→ norm) → linear → f

with φ the LeakyReLU of slope `SLOPE`. Each block starts as one unit (conv with bias, batch norm, φ); units inserted
later are meant to start as the identity. Source: Appolinary et al. 2024, arXiv 2401.05686, sections 2 and 3; the paper
draws the head without its sizes, which are those that reproduce the parameter counts of its figure 3.

The K members are one network of K·c channels in grouped convolutions: batch norm is then each member's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from theory.ensemble.seeding import normal
from theory.growth.taps import Tap

SLOPE = 0.01  # of the LeakyReLU
MOMENTUM = 0.1  # of the running statistics of batch norm
EPSILON = 1e-5  # added to variances by batch norm
_UNTRACKED: dict[str, Tensor | None] = {"running_mean": None, "running_var": None}
UNIT_NORMS = ("none", "calibrated", "fresh")


@dataclass(frozen=True)
class Architecture:
    """Shape of a growing network.

    image      (channels, height, width) of the inputs
    classes    outputs
    widths     channels of each block, from the input up; two blocks or more
    units      inserted units of each block, on top of the one it starts with; () for none
    unit_norm  what an inserted unit, a conv without bias, is followed by:
               "none"        PReLU with a slope per channel
               "calibrated"  a norm that stays in inference mode (statistics fixed at insertion), then the PReLU
               "fresh"       batch norm, then LeakyReLU: the paper's, which is not the identity when it starts
    mixed      channels of the 1×1 conv, 10 in the paper
    hidden     size of the hidden linear layer, 20 in the paper
    head_norm  batch norms in the head: 0, 1 (before the activation) or 2 (before and after it, the paper's number)

    Raises ValueError for numbers that make no network.
    """

    image: tuple[int, int, int]
    classes: int
    widths: tuple[int, ...]
    units: tuple[int, ...] = ()
    unit_norm: str = "none"
    mixed: int = 10
    hidden: int = 20
    head_norm: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units) or (0,) * len(self.widths))
        if len(self.widths) < 2 or len(self.units) != len(self.widths):
            raise ValueError(
                f"widths = {self.widths} and units = {self.units} must name the same blocks, two or more: the skip "
                "joins the first to the last"
            )
        sizes = (*self.image, self.classes, *self.widths, self.mixed, self.hidden)
        if len(self.image) != 3 or min(sizes) < 1 or min(self.units) < 0:
            raise ValueError(f"every size must be positive, and units not negative, got {self}")
        if self.unit_norm not in UNIT_NORMS:
            raise ValueError(f"unit_norm = {self.unit_norm!r} must be one of {', '.join(UNIT_NORMS)}")
        if self.head_norm not in (0, 1, 2):
            raise ValueError(f"head_norm = {self.head_norm} must be 0, 1 or 2")
        if min(self.image[1:]) < 2**self.blocks:
            raise ValueError(
                f"an image of {self.image[1]} × {self.image[2]} does not survive {self.blocks} halvings: its sides "
                f"must be at least {2**self.blocks}"
            )

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.widths)

    @property
    def features(self) -> int:
        """Inputs of the hidden linear layer: the channels of the 1×1 conv at every place that is left."""
        return self.mixed * (self.image[1] >> self.blocks) * (self.image[2] >> self.blocks)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter of one member by name, in the order of the forward pass."""
        shapes: dict[str, tuple[int, ...]] = {}
        below = self.image[0]
        for block, (c, inserted) in enumerate(zip(self.widths, self.units, strict=True), start=1):
            shapes |= {f"block{block}.conv.weight": (c, below, 3, 3), f"block{block}.conv.bias": (c,)}
            shapes |= _norm_shapes(f"block{block}", c)
            for unit in range(1, inserted + 1):
                name = f"block{block}.unit{unit}"
                shapes[f"{name}.conv.weight"] = (c, c, 3, 3)
                if self.unit_norm != "none":
                    shapes |= _norm_shapes(name, c)
                if self.unit_norm != "fresh":
                    shapes[f"{name}.slope"] = (c,)
            below = c
        shapes |= {"mixed.weight": (self.mixed, self.widths[0] + self.widths[-1], 1, 1), "mixed.bias": (self.mixed,)}
        shapes |= {"hidden.weight": (self.hidden, self.features), "hidden.bias": (self.hidden,)}
        for index in range(1, self.head_norm + 1):
            shapes |= _norm_shapes(f"hidden{index}", self.hidden)
        return shapes | {"readout.weight": (self.classes, self.hidden), "readout.bias": (self.classes,)}

    def buffers(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every running statistic of one member by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self.parameters().items():
            if name.endswith(".norm.scale"):
                stem = name.removesuffix("scale")
                shapes |= {f"{stem}mean": shape, f"{stem}variance": shape}
        return shapes


def parameter_count(architecture: Architecture) -> int:
    """Return the number of parameters of one member by the closed formula.

    With block widths c_b (c_0 the image's), n_b inserted units, and e = 1, 3, 2 numbers per channel of an inserted unit
    for unit_norm "none", "calibrated", "fresh",

        P = Σ_b [c_b (9 c_{b-1} + 3) + n_b (9 c_b² + e c_b)] + mixed (c_1 + c_B + 1) + hidden (features + 1)
            + 2 hidden · head_norm + classes (hidden + 1).
    """
    a = architecture
    extra = {"none": 1, "calibrated": 3, "fresh": 2}[a.unit_norm]
    blocks = zip((a.image[0], *a.widths[:-1]), a.widths, a.units, strict=True)
    P = sum(c * (9 * below + 3) + inserted * c * (9 * c + extra) for below, c, inserted in blocks)
    P += a.mixed * (a.widths[0] + a.widths[-1] + 1) + a.hidden * (a.features + 1)
    return P + 2 * a.hidden * a.head_norm + a.classes * (a.hidden + 1)


class GrowingCNN:
    """K networks of one architecture; a holder of tensors without a training mode of its own.

    parameters   by name, [K, ...] with the shapes of `architecture.parameters()`
    buffers      running statistics of the batch norms by name, [K, c], as of `architecture.buffers()`

    Raises ValueError for names or shapes that are not those of the architecture.
    """

    def __init__(
        self, architecture: Architecture, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> None:
        self.architecture, self.parameters, self.buffers = architecture, dict(parameters), dict(buffers)
        if not parameters:
            raise ValueError("a network needs parameters")
        K = next(iter(parameters.values())).shape[0]
        for what, given, wanted in (
            ("parameters", self.parameters, architecture.parameters()),
            ("buffers", self.buffers, architecture.buffers()),
        ):
            if given.keys() != wanted.keys():
                odd = sorted(given.keys() ^ wanted.keys())
                raise ValueError(f"{what} are not those of {architecture}: {', '.join(odd)} missing or unknown")
            for name, shape in wanted.items():
                if given[name].shape != (K, *shape):
                    raise ValueError(f"{name} must be {[K, *shape]}, got {list(given[name].shape)}")

    @property
    def members(self) -> int:
        """K, the number of networks."""
        return self.parameters["readout.bias"].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return self.parameters["readout.bias"].dtype

    def copy(self, dtype: torch.dtype | None = None, members: slice = slice(None)) -> GrowingCNN:
        """Return the same networks, or some of them, with tensors of their own, in another precision if asked for."""
        dtype = dtype or self.dtype
        parameters, buffers = (
            {name: t.detach()[members].to(dtype, copy=True) for name, t in tensors.items()}
            for tensors in (self.parameters, self.buffers)
        )
        return GrowingCNN(self.architecture, parameters, buffers)

    def forward(self, x: Tensor, *, train: bool = False, track: bool = False, ordered: bool = False) -> Tensor:
        """Return the outputs f, [K, N, classes], for x [N, c, h, w], shared by all members, or [K, N, c, h, w].

        With `train` batch norm uses the batch's statistics, and the biases that these cancel get no gradient; with
        `track` too it also updates the running ones in place.
        With `ordered`, which is slow, convolutions are summed over their inputs in order: a matrix product rounds
        differently when inputs or outputs join, even with weights of zero; this sum does not change by a bit. Raises
        ValueError for `track` without `train`, and for images of another shape.
        """
        if track and not train:
            raise ValueError("running statistics are tracked in training mode only: pass train=True with track=True")
        return _Pass(self, self.parameters, train=train, track=track, ordered=ordered).outputs(x)

    def taps(self, x: Tensor, start: tuple[int, Mapping[str, Tap]] | None = None) -> tuple[Tensor, list[Tap]]:
        """Return f, [K, N, classes], in inference mode, and the taps that lead to it (see `theory.growth.taps`).

        One tap for every place with parameters, named as its parameters without their last part (the slopes of a unit
        "block1.unit1.slope"), and a site "block1.site" at the end of each block, before its pool, where `insert_identity`
        would put a unit. Gradients flow to the outputs of the taps but not to the network's own tensors.
        With start = (block, known) the pass starts at that block, 2 or later, and so do the taps: what comes before is
        taken from the taps, `known` by name, of a network with the same blocks up to there and on the same images.
        Raises ValueError for images of another shape, another number of them than known, and blocks that there are not.
        """
        leaves = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        taps: list[Tap] = []
        with torch.enable_grad():
            f = _Pass(self, leaves, taps=taps).outputs(x, start)
        return f, taps


class _Pass:
    """One forward pass; feature maps are [N, K·c, h, w]."""

    def __init__(
        self,
        net: GrowingCNN,
        parameters: Mapping[str, Tensor],
        *,
        train: bool = False,
        track: bool = False,
        ordered: bool = False,
        taps: list[Tap] | None = None,
    ) -> None:
        self.a, self.K = net.architecture, net.members
        self.parameters, self.buffers = parameters, net.buffers
        self.train, self.track, self.ordered = train, track, ordered
        self.taps = taps

    def outputs(self, x: Tensor, start: tuple[int, Mapping[str, Tap]] | None = None) -> Tensor:
        first = 1
        if start is None:
            z = skip = self._images(x)
        else:
            first, known = start
            if not 2 <= first <= self.a.blocks:
                raise ValueError(f"a pass can start at blocks 2 to {self.a.blocks}, not at {first}")
            inputs, end = known[f"block{first}.conv"].inputs, known["block1.site"].inputs
            if inputs.shape[1] != x.shape[-4]:
                raise ValueError(f"known are {inputs.shape[1]} examples, but the images are {list(x.shape)}")
            z = inputs.transpose(0, 1).flatten(1, 2)
            skip = self._skipped(functional.max_pool2d(end.transpose(0, 1).flatten(1, 2), 2))
        for block in range(first, self.a.blocks + 1):
            name = f"block{block}"
            z = self._conv(name, z, bias=True, cancelled=self.train)
            z = functional.leaky_relu(self._norm(name, z, frozen=not self.train), SLOPE)
            for unit in range(1, self.a.units[block - 1] + 1):
                z = self._inserted(f"{name}.unit{unit}", z)
            z = functional.max_pool2d(self._tap(f"{name}.site", "site", (), z, z), 2)
            if block == 1:
                skip = self._skipped(z)
        both = torch.cat([self._split(skip), self._split(z)], 2).flatten(1, 2)
        z = functional.leaky_relu(self._conv("mixed", both, bias=True), SLOPE)
        return self._head(self._split(z).transpose(0, 1).flatten(2))

    def _skipped(self, z: Tensor) -> Tensor:
        """Return the end of block 1 at the size of the end of the last block."""
        return functional.max_pool2d(z, 2 ** (self.a.blocks - 1))

    def _images(self, x: Tensor) -> Tensor:
        if x.dim() not in (4, 5) or x.shape[-3:] != self.a.image or (x.dim() == 5 and x.shape[0] != self.K):
            raise ValueError(
                f"images must be [N, c, h, w] or [K, N, c, h, w] with K = {self.K} and (c, h, w) = {self.a.image}, got "
                f"{list(x.shape)}"
            )
        return x.repeat(1, self.K, 1, 1) if x.dim() == 4 else x.transpose(0, 1).flatten(1, 2)

    def _inserted(self, name: str, z: Tensor) -> Tensor:
        z = self._conv(name, z, bias=False)
        if self.a.unit_norm == "fresh":
            return functional.leaky_relu(self._norm(name, z, frozen=not self.train), SLOPE)
        if self.a.unit_norm == "calibrated":
            z = self._norm(name, z, frozen=True)
        name = f"{name}.slope"
        after = functional.prelu(z, self.parameters[name].flatten())
        return after if self.taps is None else self._tap(name, "scale", (name,), z.clamp(max=0), after)

    def _conv(self, name: str, z: Tensor, *, bias: bool, cancelled: bool = False) -> Tensor:
        """Convolve with the weights of a block, a unit ("….conv.weight") or the 1×1 conv ("mixed.weight").

        A bias that the mean of a batch cancels has no gradient but for rounding, which Adam would blow up to steps of
        full length: it gets none.
        """
        stem = name if name == "mixed" else f"{name}.conv"
        names = (f"{stem}.weight", f"{stem}.bias")[: 1 + bias]
        w, b = self.parameters[names[0]], self.parameters[names[-1]] if bias else None
        b = b.detach() if cancelled and b is not None else b
        side = w.shape[-1]
        if self.ordered:
            after = self._ordered(z, w, b)
        else:
            flat = None if b is None else b.flatten()
            after = functional.conv2d(z, w.flatten(0, 1), flat, padding=side // 2, groups=self.K)
        return self._tap(stem, "conv", names, z, after, kernel=side, padding=side // 2)

    def _ordered(self, z: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Return the convolution, summed one input and one tap of the kernel after another, elementwise."""
        side, height, width = w.shape[-1], z.shape[2], z.shape[3]
        padded = self._split(functional.pad(z, (side // 2,) * 4)).unsqueeze(2)  # [N, K, 1, c, ...]
        after = z.new_zeros(len(z), self.K, w.shape[1], height, width)
        w = w[..., None, None]
        for channel in range(w.shape[2]):
            for row in range(side):
                for column in range(side):
                    read = padded[:, :, :, channel, row : row + height, column : column + width]
                    after += w[:, :, channel, row, column] * read
        return (after if b is None else after + b[..., None, None]).flatten(1, 2)

    def _norm(self, stem: str, z: Tensor, *, frozen: bool) -> Tensor:
        """Return batch norm of z [N, K·c, ...], by the running statistics if frozen."""
        scale, shift = (f"{stem}.norm.{part}" for part in ("scale", "shift"))
        gamma, beta = self.parameters[scale].flatten(), self.parameters[shift].flatten()
        mean, variance = (self.buffers[f"{stem}.norm.{part}"].view(-1) for part in ("mean", "variance"))
        if not frozen:
            kept = {"running_mean": mean, "running_var": variance} if self.track else _UNTRACKED
            return functional.batch_norm(
                z, weight=gamma, bias=beta, training=True, momentum=MOMENTUM, eps=EPSILON, **kept
            )
        deviation = standard_deviation(variance)
        column = (-1, *(1,) * (z.dim() - 2))
        if self.taps is not None:
            normalised = (z - mean.view(column)) / deviation.view(column)
            after = torch.addcmul(beta.view(column), normalised, gamma.view(column))
            return self._tap(f"{stem}.norm", "scale", (scale, shift), normalised, after)
        # One scale and one shift per channel: calibrated to the identity they are exactly 1 and 0.
        slope = gamma / deviation
        return torch.addcmul((beta - mean * slope).view(column), z, slope.view(column))

    def _head(self, z: Tensor) -> Tensor:
        """Return the outputs [K, N, classes] of features [K, N, d]."""
        z = self._linear("hidden", z, cancelled=self.train and self.a.head_norm > 0)
        z = self._head_norm(1, z) if self.a.head_norm > 0 else z
        z = functional.leaky_relu(z, SLOPE)
        z = self._head_norm(2, z) if self.a.head_norm > 1 else z
        return self._linear("readout", z)

    def _head_norm(self, index: int, z: Tensor) -> Tensor:
        flat = self._norm(f"hidden{index}", z.transpose(0, 1).flatten(1), frozen=not self.train)
        return self._split(flat).transpose(0, 1)

    def _linear(self, name: str, z: Tensor, *, cancelled: bool = False) -> Tensor:
        names = (f"{name}.weight", f"{name}.bias")
        w, b = (self.parameters[part] for part in names)
        after = torch.baddbmm((b.detach() if cancelled else b).unsqueeze(1), z, w.mT)
        if self.taps is not None:
            self.taps.append(Tap(name, "linear", names, z.detach(), after))
        return after

    def _split(self, z: Tensor) -> Tensor:
        """[N, K·c, ...] -> [N, K, c, ...]."""
        return z.unflatten(1, (self.K, -1))

    def _tap(
        self,
        name: str,
        kind: str,
        parameters: tuple[str, ...],
        read: Tensor,
        z: Tensor,
        kernel: int = 1,
        padding: int = 0,
    ) -> Tensor:
        """Return z, through a tap if taps are wanted; both are [N, K·c, ...]."""
        if self.taps is None:
            return z
        inputs, outputs = self._split(read).transpose(0, 1).detach(), self._split(z).transpose(0, 1)
        self.taps.append(Tap(name, kind, parameters, inputs, outputs, kernel, padding))
        return outputs.transpose(0, 1).flatten(1, 2)


def initial(
    architecture: Architecture,
    seeds: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> GrowingCNN:
    """Return freshly initialised networks, one per seed.

    Weights are N(0, 2/fan-in), those of the readout N(0, 1/fan-in); biases and shifts 0, scales 1, running statistics
    0 and 1; the slopes of inserted units are those of the LeakyReLU. A parameter's draws depend on its seed, name and
    shape alone. Raises ValueError for no seeds.
    """
    if not seeds:
        raise ValueError("a network needs at least one seed")
    parameters: dict[str, Tensor] = {}
    for name, shape in architecture.parameters().items():
        part = name.rsplit(".", 1)[1]
        if part == "weight":
            fan_in = torch.Size(shape[1:]).numel()
            std = ((1.0 if name.startswith("readout") else 2.0) / fan_in) ** 0.5
            draws = [normal(shape, "growth", seed, name, shape, dtype=dtype, device=device) for seed in seeds]
            parameters[name] = torch.stack(draws) * std
        else:
            value = {"bias": 0.0, "shift": 0.0, "scale": 1.0, "slope": SLOPE}[part]
            parameters[name] = torch.full((len(seeds), *shape), value, dtype=dtype, device=device)
    buffers = {
        name: torch.full((len(seeds), *shape), float(name.endswith("variance")), dtype=dtype, device=device)
        for name, shape in architecture.buffers().items()
    }
    return GrowingCNN(architecture, parameters, buffers)


def standard_deviation(variance: Tensor) -> Tensor:
    """Return what a norm divides by: √(variance + ε)."""
    return (variance + EPSILON).sqrt()


def _norm_shapes(stem: str, c: int) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.norm.scale": (c,), f"{stem}.norm.shift": (c,)}
