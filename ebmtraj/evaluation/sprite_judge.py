"""What a sprite shows: a network that reads shape, size and place, trained on fresh renders; with its own error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.datasets.sprites import COUNTS, ORIENTATIONS, PLACES, SCALES, SHAPES, render_sprites
from ebmtraj.device import no_denormals, weights_from
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import read_json, write_json
from ebmtraj.training.checkpoint import load_tensors, load_weights, save_tensors

VERSION = 2  # counts changes of the network or its training
SIZE_PX, REACH_PX = 0.32, 0.5  # of a picture's side: a square's side at scale 1, and what a centre moves over


class Reading(NamedTuple):
    """What sprites show."""

    shape: Tensor  # (N,) number of the shape
    size: Tensor  # (N,) pixels: the side of a square of this scale
    place: Tensor  # (N, 2) pixels, right and down, from the middle of the picture


class SpriteJudge(nn.Module):
    """A convolutional regressor of pictures (B, 1, S, S) in [0, 1]."""

    def __init__(self, side: int, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.SiLU()]
        self.side, channels, now = side, width, side
        while now > 4:
            wider = min(2 * channels, 4 * width)
            layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
            layers += [nn.Conv2d(wider, wider, 3, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
            channels, now = wider, (now + 1) // 2
        layers += [nn.Flatten(), nn.Linear(channels * now * now, 192), nn.SiLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(192, len(SHAPES) + 3)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the shape `(B, 3)`, and size and place in pixels `(B, 3)`."""
        out = self.head(self.body((pixels - 0.05) / 0.2))
        return out[:, : len(SHAPES)], out[:, len(SHAPES) :]

    @torch.no_grad()
    def read(self, pixels: Tensor, batch: int = 1000) -> Reading:
        """What these pictures `(N, 1, S, S)` show."""
        found = [self(part) for part in pixels.split(batch)]
        numbers = torch.cat([each for _, each in found])
        middle = 0.75 * SIZE_PX * self.side
        return Reading(torch.cat([logits for logits, _ in found]).argmax(1), numbers[:, 0] + middle, numbers[:, 1:])


def truth_of(factors: Tensor, side: int) -> Reading:
    """What sprites rendered from factors `(N, 5)` show."""
    place = (factors[:, 3:5] - 0.5) * REACH_PX * side
    return Reading(factors[:, 0].long(), factors[:, 1] * SIZE_PX * side, place)


def reading_errors(found: Reading, wanted: Reading) -> dict[str, float]:
    """Mean errors: size, place (Euclidean, and each coordinate's own) in pixels, and the share of right shapes."""
    off = found.place - wanted.place
    return {
        "size_px": float((found.size - wanted.size).abs().mean()),
        "place_px": float(off.norm(dim=1).mean()),
        "place_axis_px": float(off.abs().mean()),
        "shape_accuracy": float((found.shape == wanted.shape).double().mean()),
    }


def random_factors(count: int, seed: int, **held: float) -> np.ndarray:
    """Factors `(N, 5)` of random combinations; those named in `held` (shape, scale, orientation, x, y) are as given."""
    random = np.random.default_rng(seed)
    values = (np.arange(len(SHAPES)), SCALES, ORIENTATIONS, PLACES, PLACES)
    drawn = np.stack([each[random.integers(n, size=count)] for each, n in zip(values, COUNTS, strict=True)], axis=1)
    for name, value in held.items():
        drawn[:, ("shape", "scale", "orientation", "x", "y").index(name)] = value
    return drawn


@no_denormals()
def train_sprite_judge(
    side: int, steps: int = 2500, batch: int = 192, seed: int = 0, pool: int | None = None
) -> SpriteJudge:
    """Train on `pool` fresh renders (60,000 at most) with a little noise on their pixels; the same bits on one machine."""
    pool = pool or min(60_000, batch * steps)
    factors = random_factors(pool, 1_000 + seed)
    pixels = torch.from_numpy(render_sprites(factors, side))
    wanted = truth_of(torch.from_numpy(factors).float(), side)
    middle = 0.75 * SIZE_PX * side
    target = torch.cat([(wanted.size - middle).unsqueeze(1), wanted.place], dim=1)
    noise = torch.Generator().manual_seed(seed)
    with weights_from(seed):
        judge = SpriteJudge(side).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(judge.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(pool, (batch,), generator=noise)
        x = pixels[index].float() / 255
        x = x + 0.04 * torch.rand(batch, 1, 1, 1, generator=noise) * torch.randn(x.shape, generator=noise)
        logits, numbers = judge(x)
        loss = F.cross_entropy(logits, wanted.shape[index])
        loss = loss + 4 * F.smooth_l1_loss(numbers, target[index], beta=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return judge.eval()


def sprite_judge(side: int, folder: Path, steps: int = 2500) -> tuple[SpriteJudge, dict[str, Any]]:
    """The judge kept in a folder, trained there if it is missing; and its own errors on 5,000 renders it never saw.

    Raises `EbmtrajError` for a damaged file.
    """
    path = folder / f"sprite-judge-{side}-{steps}-v{VERSION}.safetensors"
    judge = SpriteJudge(side)
    if path.exists():
        load_weights(judge, load_tensors(path)[1], path)
        return judge.eval(), dict(read_json(path.with_suffix(".json")))
    if folder.exists() and not folder.is_dir():
        raise EbmtrajError(f"{folder} is not a folder")
    judge = train_sprite_judge(side, steps)
    factors = random_factors(5000, 1)
    pixels = torch.from_numpy(render_sprites(factors, side)).float() / 255
    facts = reading_errors(judge.read(pixels), truth_of(torch.from_numpy(factors).float(), side))
    write_json(path.with_suffix(".json"), facts)
    save_tensors(path, judge.state_dict(), {"kind": "sprite judge", "side": side, "steps": steps})
    return judge, facts


class Validity:
    """Whether generated sprites are sprites: how far each is from the nearest render at what it shows, in any orientation.

    The bar is the 99th percentile of that distance for real sprites that are off the grid of factors by as much as the judge
    errs.
    """

    def __init__(self, judge: SpriteJudge, bar: float | None = None) -> None:
        self.judge = judge
        self.bar = self._bar() if bar is None else bar

    def distance(self, pixels: Tensor) -> Tensor:
        """Root mean squared difference over the sprite's own pixels to the nearest of 3 x 20 renders, `(N,)`."""
        side = self.judge.side
        shown = self.judge.read(pixels)
        scale = (shown.size / (SIZE_PX * side)).clamp(0.4, 1.0)
        place = (shown.place / (REACH_PX * side) + 0.5).clamp(0, 1)
        best = torch.full((len(pixels),), torch.inf)
        for shape in range(len(SHAPES)):
            for angle in np.linspace(0, 2 * np.pi, 20, endpoint=False):
                factors = torch.stack(
                    [torch.full_like(scale, shape), scale, torch.full_like(scale, float(angle)), place[:, 0], place[:, 1]],
                    dim=1,
                )
                render = torch.from_numpy(render_sprites(factors.double().numpy(), side)).float() / 255
                mass = render.flatten(1).square().sum(1).clamp_min(1e-6)
                best = torch.minimum(best, ((pixels - render).flatten(1).square().sum(1) / mass).sqrt())
        return best

    def _bar(self) -> float:
        factors = random_factors(400, 2)
        pixels = torch.from_numpy(render_sprites(factors, self.judge.side)).float() / 255
        return float(torch.quantile(self.distance(pixels), 0.99))

    def facts(self, pixels: Tensor) -> dict[str, float]:
        """Of pictures `(N, 1, S, S)`, shares as near a render as real sprites are, and of which one explains 80 %."""
        distance = self.distance(pixels)
        explained = (distance <= 0.2**0.5).double().mean()
        return {"valid": float((distance <= self.bar).double().mean()), "one_sprite": float(explained)}
