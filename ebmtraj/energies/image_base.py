"""Explicit densities of images at every noise level, for a noise-conditional energy to tilt."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError

MOST_ENTRIES = 1024  # of an event, for a mixture with full covariances


class UnitGaussian(nn.Module):
    """N(0, 1 + s^2) in each entry: data of unit spread under noise of level s."""

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Energies `(B,)` of events `(B, *event)` at level `()` or `(B,)`, up to a constant of the level."""
        return 0.5 * x.square().flatten(1).sum(1) / (1 + level**2)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, *event)`."""
        return x / (1 + spread_out(level, x) ** 2)


class MixtureBase(nn.Module):
    """A mixture of full Gaussians, whose density under noise of level s is known: N(m_k, C_k + s^2) in each component.

    Components belong to a class each, or to none (-1). Given a label, those of its class count alone; label -1
    stands for none.
    """

    weight: Tensor  # (M,) logarithms, of M components over events of D entries
    mean: Tensor  # (M, D)
    axes: Tensor  # (M, D, D) eigenvectors of C_k in columns
    variance: Tensor  # (M, D) and its eigenvalues
    owner: Tensor  # (M,) class of each, -1 for none

    def __init__(self, event: tuple[int, ...], components: int, classes: int) -> None:
        """`components` a class, or in all where `classes` is 0; raises `EbmtrajError` for events that are too large."""
        super().__init__()
        size, count = int(np.prod(event)), components * max(1, classes)
        if size > MOST_ENTRIES:
            raise EbmtrajError(
                f"network.base: images of {size} entries; a mixture of Gaussians takes at most {MOST_ENTRIES}: use "
                "--set network.base=unit"
            )
        self.components, self.classes = components, classes
        self.register_buffer("weight", torch.full((count,), -float(np.log(count))))  # logarithms
        self.register_buffer("mean", torch.zeros(count, size))
        self.register_buffer("axes", torch.eye(size).repeat(count, 1, 1))  # eigenvectors of C_k in columns
        self.register_buffer("variance", torch.ones(count, size))  # and its eigenvalues
        self.register_buffer("owner", torch.full((count,), -1))

    @torch.no_grad()
    def fit(self, x: Tensor, label: Tensor | None, floor: float, seed: int = 0) -> None:
        """Fit to events `(N, *event)` by expectation maximisation; `floor` is added to every variance.

        Raises `EbmtrajError` where a class has fewer images than components.
        """
        flat = x.flatten(1).double().cpu().numpy()
        kinds = [-1] if self.classes == 0 else list(range(self.classes))
        own = None if label is None else label.cpu().numpy()
        for i, kind in enumerate(kinds):
            rows = flat if kind < 0 or own is None else flat[own == kind]
            if len(rows) <= self.components:
                what = "images" if kind < 0 else f"images of class {kind}"
                raise EbmtrajError(f"network.components = {self.components}, but there are {len(rows)} {what}; give fewer")
            place = slice(i * self.components, (i + 1) * self.components)
            weight, mean, covariance = _mixture(rows, self.components, floor, seed)
            values, vectors = np.linalg.eigh(covariance)
            share = weight * len(rows) / len(flat)
            for target, value in (
                (self.weight, np.log(np.maximum(share, 1e-12))),
                (self.mean, mean),
                (self.axes, vectors),
                (self.variance, np.maximum(values, floor)),
                (self.owner, np.full(self.components, kind)),
            ):
                target[place] = torch.as_tensor(value).to(target)

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """-log p(x, y) of events under noise, or -log p(x) without a label, `(B,)`, without the constant of the size."""
        return -torch.logsumexp(self._logs(x, label, level)[0], dim=1)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, *event)`: the components' own, by their shares."""
        logs, white, variance = self._logs(x, label, level)
        pulls = logs.softmax(1).T.unsqueeze(-1) * white / variance  # (K, B, D) along each one's axes
        return torch.einsum("kbe,kde->bd", pulls, self.axes).view_as(x)

    def _logs(self, x: Tensor, label: Tensor | None, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log of weight times density `(B, K)`; offsets along the axes `(K, B, D)` and variances `(K, B or 1, D)` there."""
        white = (
            torch.einsum("bd,kde->kbe", x.flatten(1), self.axes) - torch.einsum("kd,kde->ke", self.mean, self.axes)[:, None]
        )
        variance = self.variance[:, None] + (level**2).reshape(1, -1, 1)
        logs = self.weight[:, None] - 0.5 * (white.square() / variance + variance.log()).sum(-1)
        if label is not None and self.classes:
            logs = logs.masked_fill((self.owner[:, None] != label) & (label >= 0), -torch.inf)
        return logs.T, white, variance

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, level: float, generator: torch.Generator) -> Tensor:
        """Events under noise of a level, flat, `(count, D)`."""
        logs = self.weight.expand(count, -1)
        if label is not None and self.classes:
            logs = logs.masked_fill((self.owner != label[:, None]) & (label[:, None] >= 0), -torch.inf)
        which = torch.multinomial(logs.softmax(1), 1, generator=generator).squeeze(1)
        noise = torch.empty((count, self.mean.shape[1]), device=logs.device).normal_(generator=generator)
        scaled = noise * (self.variance[which] + level**2).sqrt()
        return self.mean[which] + torch.einsum("be,bde->bd", scaled, self.axes[which])


def spread_out(level: Tensor, x: Tensor) -> Tensor:
    """A level `()` or `(B,)` in a shape that multiplies events `(B, *event)`."""
    return level.reshape(-1, *[1] * (x.dim() - 1))


def picked(logits: Tensor, label: Tensor | None) -> Tensor:
    """The logit of the label or, where there is none, their logsumexp, `(B,)`."""
    whole = logits.logsumexp(1)
    if label is None:
        return whole
    return torch.where(label < 0, whole, logits.gather(1, label.clamp_min(0).unsqueeze(1)).squeeze(1))


def _mixture(rows: np.ndarray, components: int, floor: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights `(K,)`, means `(K, D)` and covariances `(K, D, D)`."""
    if components == 1:
        mean = rows.mean(0)
        off = rows - mean
        return np.ones(1), mean[None], (off.T @ off / len(rows) + floor * np.eye(rows.shape[1]))[None]
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # so that the bits don't depend on the number of cores
        found = GaussianMixture(components, reg_covar=floor, random_state=seed % 2**32, max_iter=200).fit(rows)
    return found.weights_, found.means_, found.covariances_
