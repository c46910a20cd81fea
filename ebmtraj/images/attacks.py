"""Attacks by well-kept libraries: AutoAttack and its Square attack (pyautoattack), the boundary attack (foolbox).

Croce and Hein 2020; Andriushchenko et al. 2020; Brendel et al. 2018.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.robustness import Classify, mean_log_p

TRIES = 20  # starts of the boundary attack, an image
Predict = Callable[[Tensor], Tensor]  # pixels (B, C, H, W) -> log p(y | x), (B, K)


class _Predictor(nn.Module):
    def __init__(self, predict: Predict) -> None:
        super().__init__()
        self.predict = predict

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x.float())


def library(name: str) -> Any:
    """An optional attack library; raises `EbmtrajError` that says how to install it."""
    try:
        with warnings.catch_warnings():  # foolbox 3.3.4 uses a deprecated part of setuptools and eagerpy on import
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        raise EbmtrajError(f"this attack needs {name}; install it with: pip install 'ebmtraj[attacks]'") from None


def auto_attack(
    seen: Classify, pixels: Tensor, labels: Tensor, eps: float, norm: str, seed: int, *, steps: int, random: bool
) -> Tensor:
    """AutoAttack (Croce and Hein 2020), `(B, C, H, W)`: its standard version or, on a random classifier, its "rand" one.

    Standard: APGD on cross-entropy and targeted, FAB and Square. Rand: APGD on cross-entropy and DLR, for `steps` each, on
    means over new draws of noise at every step.
    """
    attack = _auto_attack(lambda x: mean_log_p(seen(x)), eps, norm, seed, "rand" if random else "standard")
    if random:  # `seen` itself averages over noise
        attack.apgd.n_restarts, attack.apgd.n_iter, attack.apgd.eot_iter = 1, steps, 1
    return _run(attack, pixels, labels, seed)


def square_attack(
    predict: Predict, pixels: Tensor, labels: Tensor, eps: float, norm: str, seed: int, queries: int
) -> Tensor:
    """The Square attack (Andriushchenko et al. 2020), which asks for log p(y | x) and for no gradient, `(B, C, H, W)`."""
    attack = _auto_attack(predict, eps, norm, seed, "custom")
    attack.square.n_queries, attack.attacks_to_run = queries, ["square"]
    return _run(attack, pixels, labels, seed)


def _auto_attack(predict: Predict, eps: float, norm: str, seed: int, version: str) -> Any:
    made = library("pyautoattack").AutoAttack(
        _Predictor(predict).eval(),
        eps=eps,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        seed=seed,
        version=version,
        **({"attacks": ["square"]} if version == "custom" else {}),
    )
    return made


def _run(attack: Any, pixels: Tensor, labels: Tensor, seed: int) -> Tensor:
    attack.logger.setLevel(logging.ERROR)  # it warns of random and of dynamic classifiers, which is known here
    attack.device = str(pixels.device)
    for each in (attack.apgd, attack.fab, attack.square, attack.apgd_targeted):
        each.device = str(pixels.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found: Tensor = attack.run_standard_evaluation(pixels, labels, batch_size=len(pixels))[0]
    return found.detach().float()


def boundary_attack(predict: Predict, pixels: Tensor, labels: Tensor, seed: int, steps: int) -> Tensor:
    """The boundary attack (Brendel et al. 2018), which asks for decisions alone: near images of another class.

    Returns `(B, C, H, W)`, at small L2 distances. Images without an adversarial start come back as they were.
    """
    foolbox = library("foolbox")
    with torch.random.fork_rng(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = foolbox.PyTorchModel(_Predictor(predict).eval(), bounds=(0, 1), device=str(pixels.device))
        found = pixels.clone()
        rows = torch.nonzero(predict(pixels).argmax(1) == labels).squeeze(1)
        rows, starts = _starts(predict, pixels, labels, rows)
        if not len(rows):
            return found
        attack = foolbox.attacks.BoundaryAttack(steps=steps)
        out = attack.run(model, pixels[rows], foolbox.criteria.Misclassification(labels[rows]), starting_points=starts)
        found[rows] = out.float()
    return found


def _starts(predict: Predict, pixels: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """For each of these images the nearest other one that is taken for another class, `(M, C, H, W)`, and which have one.

    A classifier whose noise is the same for every question has it by an image's place among those that are asked for
    together, so that a start counts only in the place of the image that it is for.
    """
    while len(rows):
        gap = torch.cdist(pixels[rows].flatten(1), pixels.flatten(1))
        order = gap.masked_fill(labels[rows].unsqueeze(1) == labels, torch.inf).argsort(1)
        starts, good = pixels[order[:, 0]], torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for place in order.T[:TRIES]:
            starts = torch.where(good.view(-1, 1, 1, 1), starts, pixels[place])
            good = predict(starts).argmax(1) != labels[rows]
            if bool(good.all()):
                return rows, starts
        rows = rows[good]
    return rows, pixels[:0]
