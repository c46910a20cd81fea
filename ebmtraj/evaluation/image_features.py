"""The project's own judge of images: a small network trained on the training split, named by the hash of its weights.

Its penultimate layer gives the features of Frechet and kernel distances, its classes the labels of generated images. Where
images have no labels it learns to tell by how many quarter turns an image was turned (Gidaris et al. 2018).
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmtraj.datasets.images import ImageStore
from ebmtraj.device import generator, no_denormals, weights_from
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import Array, FloatArray
from ebmtraj.training.checkpoint import load_tensors, load_weights, save_tensors

FEATURES = 64
VARIANCE = 10.0  # of all features together over the training images, so that distances of different judges compare
VERSION = 1  # counts changes of the network or its training, so that an old file is not taken for a new one
_TURNS = ("upright", "quarter turn", "half turn", "three quarters")


@dataclass(frozen=True)
class JudgeConfig:
    """How the judge is trained."""

    width: int = 32  # channels of the first convolution
    steps: int = 1500  # of training
    batch: int = 128  # examples a step
    learning_rate: float = 2e-3  # at its greatest
    weight_decay: float = 1e-3  # of the optimiser
    dropout: float = 0.3  # share of units, in training
    noise: float = 0.05  # on pixels, in training
    seed: int = 0  # of all that is drawn


class Judge(nn.Module):
    """A convolutional classifier of images (B, C, H, W) in [0, 1], which it shifts and scales by itself."""

    shift: Tensor
    scale: Tensor
    gain: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, config: JudgeConfig = JudgeConfig()) -> None:
        super().__init__()
        self.shape, self.classes, self.config = shape, classes, config
        self.register_buffer("shift", torch.zeros(shape[0], 1, 1))
        self.register_buffer("scale", torch.ones(shape[0], 1, 1))
        self.register_buffer("gain", torch.ones(()))
        width, (channels, height, across) = config.width, shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
        while True:  # halved at least once, and down to a side of at most 4
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU()]
            width, height, across = 2 * width, (height + 1) // 2, (across + 1) // 2
            if max(height, across) <= 4:
                break
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * height * across, FEATURES), nn.SiLU())
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(FEATURES, classes))

    def features(self, pixels: Tensor) -> Tensor:
        """Penultimate activations, (B, C, H, W) -> (B, 64); raises `EbmtrajError` for images of another size."""
        if tuple(pixels.shape[1:]) != self.shape:
            raise EbmtrajError(f"images of shape {tuple(pixels.shape[1:])}; the feature network was trained on {self.shape}")
        found: Tensor = self.body((pixels - self.shift) / self.scale)
        return found

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, (B, C, H, W) -> (B, K)."""
        logits: Tensor = self.head(self.features(pixels))
        return logits

    @torch.no_grad()
    def judge(self, pixels: Array | Tensor, batch: int = 1024) -> tuple[FloatArray, Array]:
        """Scaled features (N, 64) float64 and labels (N,) int64 of images (N, C, H, W) in [0, 1]."""
        device = self.shift.device
        features, labels = [], []
        for part in torch.as_tensor(pixels).split(batch):
            found = self.features(part.to(device, torch.float32))
            features.append((self.gain * found).double().cpu())
            labels.append(self.head(found).argmax(1).cpu())
        return torch.cat(features).numpy(), torch.cat(labels).numpy()

    @property
    def digest(self) -> str:
        """The hash that names this network: sha256 of its weights, 16 characters."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def judge_of(
    store: ImageStore, config: JudgeConfig = JudgeConfig(), *, folder: Path | None = None, device: torch.device | str = "cpu"
) -> Judge:
    """The judge of a store: read from `folder` (the one that the store lies in), where it is trained and kept if missing.

    Raises `EbmtrajError` where the file there is damaged or can't be written.
    """
    key = hashlib.sha256(f"{VERSION} {store.content_hash} {config}".encode()).hexdigest()[:12]
    path = (folder or Path(store.path).parent) / f"judge-{store.name}-{key}.safetensors"
    judge = Judge(store.shape, len(store.classes) or len(_TURNS), config)
    if path.exists():
        header, tensors = load_tensors(path)
        load_weights(judge, tensors, path)
        if header.get("digest") != judge.digest:
            raise EbmtrajError(f"{path}: the weights are not those that its header names; remove it")
        return judge.to(device).eval()
    judge = train_judge(store, config, device)
    header = {"kind": "judge", "store": store.content_hash, "config": dataclasses.asdict(config), "digest": judge.digest}
    save_tensors(path, judge.state_dict(), header)
    return judge


@no_denormals()
def train_judge(store: ImageStore, config: JudgeConfig = JudgeConfig(), device: torch.device | str = "cpu") -> Judge:
    """Train a judge on the training split of a store; the same bits on one machine, whatever its threads."""
    images = store.read("train")
    pixels = torch.from_numpy(images.pixels).to(device)
    labels = None if images.labels is None else torch.from_numpy(images.labels).to(device)
    noise, threads = generator(config.seed, device), torch.get_num_threads()
    if pixels.numel() < 1_000_000:  # a small one takes seconds on one core, and its bits do not depend on how many there are
        torch.set_num_threads(1)
    try:
        with weights_from(config.seed):
            judge = Judge(store.shape, len(store.classes) or len(_TURNS), config).to(device).train()
            judge.shift.copy_(pixels.mean((0, 2, 3)).view_as(judge.shift))
            judge.scale.copy_(pixels.std((0, 2, 3)).clamp_min(1e-3).view_as(judge.scale))
            optimiser = torch.optim.AdamW(judge.parameters(), config.learning_rate, weight_decay=config.weight_decay)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=config.steps)
            for _ in range(config.steps):
                index = torch.randint(len(pixels), (config.batch,), generator=noise, device=device)
                x, y = _example(pixels[index], None if labels is None else labels[index], config.noise, noise)
                loss = F.cross_entropy(judge(x), y, label_smoothing=0.05)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
            judge.eval()
            judge.gain.fill_(float((VARIANCE / judge.judge(images.pixels)[0].var(axis=0).sum()) ** 0.5))
    finally:
        torch.set_num_threads(threads)
    return judge


def _example(x: Tensor, label: Tensor | None, noise: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images moved by up to a sixteenth of their side, under noise; and their labels, or how many quarters they turned."""
    if label is None:
        label = torch.randint(4, (len(x),), generator=draw, device=x.device)
        x = torch.stack([torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(x, label, strict=True)])
    most = x.shape[-1] // 16
    if most:
        down, right = (int(torch.randint(-most, most + 1, (), generator=draw, device=x.device)) for _ in range(2))
        x = x.roll((down, right), (2, 3))
    return x + noise * torch.randn(x.shape, generator=draw, device=x.device), label


def judge_facts(judge: Judge, store: ImageStore) -> dict[str, Any]:
    """What a table says of its judge: its hash, its features and its accuracy on the test split."""
    facts: dict[str, Any] = {
        "network": f"cnn-{FEATURES}",
        "digest": judge.digest,
        "features": FEATURES,
        "total_variance": VARIANCE,
    }
    test = store.read("test")
    if test.labels is not None:
        facts["test_accuracy"] = float((judge.judge(test.pixels)[1] == test.labels).mean())
    return facts
