"""The residual network of paper 000's image energies (tables 6 to 9), with swish, for sizes from 8 x 8 to 128 x 128."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.nets.conv import Gains, convolution, linear, modulated

STAGES = {8: 2, 28: 3, 32: 3, 64: 4, 128: 5}  # halvings by the size of the image; others as the next larger one


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, then a halving by averages where `down`; each gain and bias by class and level."""

    def __init__(
        self, inputs: int, outputs: int, *, classes: int, levels: bool, down: bool, spectral: bool, normalise: bool
    ) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, spectral=spectral)
        self.second = convolution(outputs, outputs, spectral=spectral)
        self.shortcut = convolution(inputs, outputs, 1, spectral=spectral) if inputs != outputs else nn.Identity()
        self.gains = nn.ModuleList(Gains(channels, classes, levels) for channels in (inputs, outputs))
        self.norms = nn.ModuleList(
            nn.GroupNorm(min(8, channels), channels) if normalise else nn.Identity() for channels in (inputs, outputs)
        )
        self.down = down

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor | None) -> Tensor:
        """`(B, inputs, H, W) -> (B, outputs, H, W)`, or half of that size, rounded up."""
        h = self.first(F.silu(modulated(self.norms[0](x), self.gains[0](label, level))))
        h = self.second(F.silu(modulated(self.norms[1](h), self.gains[1](label, level))))
        out = (self.shortcut(x) + h) * 0.5**0.5  # keeps the spread of what passes
        return F.avg_pool2d(out, 2, ceil_mode=True, count_include_pad=False) if self.down else out


class ResNet(nn.Module):
    """Residual stages, each of which halves the image, then the sum over places and one linear layer.

    `(B, C, H, W) -> (B, outputs)`, given labels `(B,)` where there are `classes` and noise levels `(B,)` where `levels`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        *,
        classes: int = 0,
        levels: bool = False,
        width: int = 64,
        blocks: int = 1,
        spectral: bool = False,
        normalise: bool = False,
    ) -> None:
        """`width` channels first, twice and four times as many later; `blocks` residual blocks a stage.

        `spectral`: spectral normalisation of every layer (paper 000, section 3.3); `normalise`: group normalisation, for
        networks that are trained without it.
        """
        super().__init__()
        self.entry = convolution(shape[0], width, spectral=spectral)
        side, channels = max(shape[1:]), width
        count = STAGES[min((size for size in STAGES if size >= side), default=max(STAGES))]
        stages: list[nn.Module] = []
        for stage in range(count):
            following = width * min(4, 2**stage)
            for block in range(blocks):
                stages.append(
                    ResidualBlock(
                        channels,
                        following,
                        classes=classes,
                        levels=levels,
                        down=block == blocks - 1,
                        spectral=spectral,
                        normalise=normalise,
                    )
                )
                channels = following
        self.blocks = nn.ModuleList(stages)
        self.norm = nn.GroupNorm(min(8, channels), channels) if normalise else nn.Identity()
        self.features = channels
        self.output = linear(channels, outputs, spectral=spectral)

    def body(self, x: Tensor, label: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """What enters the last layer, `(B, features)`."""
        x = self.entry(x)
        for block in self.blocks:
            x = block(x, label, level)
        return F.silu(self.norm(x)).mean((2, 3))

    def forward(self, x: Tensor, label: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """The outputs `(B, outputs)`."""
        out: Tensor = self.output(self.body(x, label, level))
        return out
