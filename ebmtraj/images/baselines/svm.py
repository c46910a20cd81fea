"""A support vector machine with a radial kernel: what is hard to beat as a classifier of small images.

Cortes and Vapnik 1995.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageData
from ebmtraj.images.model import ImageModel
from ebmtraj.training.trainable import Stage

FOLDS = 5  # of cross-validation, in which the temperature is fitted


@dataclass(frozen=True)
class SVMConfig:
    """One machine a class against all others. Raises `EbmtrajError` for a setting out of its range."""

    penalty: float = 3.0  # of an image on the wrong side of its margin (C)
    gamma: float = 2.0  # of the kernel exp(-gamma |x - x'|^2 / D), in unit coordinates
    vectors: int = 0  # images that a machine rests on: found by the fit, and written to the checkpoint

    def __post_init__(self) -> None:
        if min(self.penalty, self.gamma) <= 0 or self.vectors < 0:
            raise EbmtrajError(
                f"network: penalty = {self.penalty}, gamma = {self.gamma}, vectors = {self.vectors}; it needs the first two "
                "above 0 and vectors >= 0"
            )


class SVMModel(ImageModel):
    """`svm`: support vector machines, fitted by scikit-learn, whose decision values over a temperature are logits.

    The temperature is the one of least cross-entropy on parts of the training images that were left out of the fit.
    """

    name = "svm"
    Config = SVMConfig
    labelled = True
    classifies = True
    closed_form = True
    config: SVMConfig
    centre: Tensor
    weight: Tensor
    offset: Tensor

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: SVMConfig) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        self._hold(np.zeros((config.vectors, math.prod(self.shape))), np.zeros((len(self.classes), config.vectors)))
        self.register_buffer("offset", torch.zeros(len(self.classes)))

    def _hold(self, centre: NDArray[Any], weight: NDArray[Any]) -> None:
        self.register_buffer("centre", torch.as_tensor(centre, dtype=torch.float32, device=self.shift.device))
        self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.float32, device=self.shift.device))

    def prepare(self, data: ImageData, most: int = 20_000) -> None:
        """Scale pixels, and fit machines and temperature; raises `EbmtrajError` where a class has too few images."""
        super().prepare(data, most)
        batch = data.at(torch.arange(min(most, len(data)), device=data.device))
        assert batch.label is not None, "a model that is `labelled` is refused data without labels"
        x, y = self.unit(batch.x).flatten(1).double().cpu().numpy(), batch.label.cpu().numpy()
        least = int(np.bincount(y, minlength=len(self.classes)).min())
        if least < FOLDS:
            raise EbmtrajError(f"model svm: {least} images of a class; it needs at least {FOLDS} of each")
        scale = 1 / self._temperature(x, y)
        weight, offset = self._fit(x, y)
        used = np.flatnonzero(np.abs(weight).sum(0))
        self._hold(x[used], scale * weight[:, used])
        self.offset.copy_(torch.from_numpy(scale * offset))
        self.config = dataclasses.replace(self.config, vectors=len(used))

    def _fit(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Weights `(K, N)` of the images in each class's decision value, and its constant `(K,)`."""
        from sklearn.svm import SVC

        weight, offset = np.zeros((len(self.classes), len(x))), np.zeros(len(self.classes))
        for k in range(len(self.classes)):
            machine = SVC(C=self.config.penalty, gamma=self.config.gamma / x.shape[1]).fit(x, y == k)
            weight[k, machine.support_], offset[k] = machine.dual_coef_[0], machine.intercept_[0]
        return weight, offset

    def _temperature(self, x: NDArray[Any], y: NDArray[Any]) -> float:
        from scipy.optimize import minimize_scalar
        from scipy.special import log_softmax
        from sklearn.metrics.pairwise import rbf_kernel
        from sklearn.model_selection import StratifiedKFold

        values = np.empty((len(x), len(self.classes)))
        for rest, left in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y):
            weight, offset = self._fit(x[rest], y[rest])
            values[left] = rbf_kernel(x[left], x[rest], self.config.gamma / x.shape[1]) @ weight.T + offset

        def entropy(log_t: float) -> float:
            return -float(log_softmax(values / math.exp(log_t), axis=1)[np.arange(len(y)), y].mean())

        return math.exp(float(minimize_scalar(entropy, bounds=(-5, 3), method="bounded").x))

    def stages(self) -> list[Stage]:
        """None: `prepare` has fitted it."""
        return []

    def validation(self, data: ImageData) -> float:
        """Cross-entropy in nats."""
        assert data.label is not None
        return float(torch.nn.functional.cross_entropy(self.logits(data.pixels), data.label))

    def logits(self, pixels: Tensor, level: Tensor | float | None = None) -> Tensor:
        """Decision values over the temperature, `(B, K)`; it has no noise levels and does not look at any."""
        flat = self.unit(pixels).flatten(1)
        squared = flat.square().sum(1, keepdim=True) + self.centre.square().sum(1) - 2 * flat @ self.centre.T
        kernel = torch.exp(squared.clamp_min(0) * (-self.config.gamma / flat.shape[1]))
        return kernel @ self.weight.T + self.offset
