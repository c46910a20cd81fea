"""Energies of images given a value and a place, whose sum is to hold for pairs never seen (paper 000, section 7)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ebmtraj.energies.base import Composable
from ebmtraj.energies.concept import autograd_slope, shrunk
from ebmtraj.energies.image_base import UnitGaussian
from ebmtraj.nets.encoder import Encoder, class_codes
from ebmtraj.nets.torus import TorusEncoder, moved

Parts = Literal["sum", "joint", "joint-relative"]


class ValuePlaceEnergy(Composable, nn.Module):
    """E(x, s | value, place) = |x|^2 / (2 (1 + s^2)) + (e_value + e_place) / s, or with one network told both.

    To the network of the value all places of a torus are alike; that of the place sees the picture moved on the torus, by
    parts of a pixel, too, to have the place in its middle. "joint": one network is told value and place as features;
    "joint-relative": one network sees the picture moved in the same way and is told the value.
    """

    values: Tensor  # (K,) which value each of K classes has
    spots: Tensor  # (K,) and which place
    value_codes: Tensor  # (V, F) features of the V values
    place_codes: Tensor  # (P, F) features of the P places
    around: Tensor  # (4, H, W) where each pixel lies, seen from the middle: sines and cosines
    centre: Tensor  # (P, 2) x and y of each place, from 0 to 1

    def __init__(
        self, shape: tuple[int, int, int], classes: tuple[str, ...], *, parts: Parts = "sum", width: int = 16
    ) -> None:
        """`classes` name value, x and y, as "0.7,0.25,0.5": places go from 0 to 1 over the inner half of the picture."""
        super().__init__()
        self.event, self.base, self.parts = shape, UnitGaussian(), parts
        rows = [name.split(",") for name in classes]
        kinds, spots = sorted({row[0] for row in rows}), list(dict.fromkeys(",".join(row[1:]) for row in rows))
        self.register_buffer("values", torch.tensor([kinds.index(row[0]) for row in rows]), persistent=False)
        spot = {name: i for i, name in enumerate(spots)}
        self.register_buffer("spots", torch.tensor([spot[",".join(row[1:])] for row in rows]), persistent=False)
        self.register_buffer("value_codes", class_codes(tuple(kinds)), persistent=False)
        self.register_buffer("place_codes", class_codes(tuple(spots)), persistent=False)
        centre = torch.tensor([[0.25 + 0.5 * float(part) for part in name.split(",")] for name in spots])
        y, x = torch.meshgrid(
            *((torch.arange(size) + 0.5) / size for size in shape[1:]),
            indexing="ij",
        )
        angle = 2 * torch.pi * (torch.stack((x, y)) - 0.5)
        self.register_buffer("around", torch.cat((angle.sin(), angle.cos())), persistent=False)
        self.register_buffer("centre", centre, persistent=False)
        channels, high, wide = shape
        told, spread = self.value_codes.shape[1], self.place_codes.shape[1]
        beside = (channels + 4, high, wide)
        wider = round(1.5 * width)
        self.nets = nn.ModuleList()
        if parts == "sum":
            self.nets.append(TorusEncoder(channels, 1, width=width, extra=told))
            self.nets.append(Encoder(beside, 1, width=width, details=True, torus=True, pool=True))
        elif parts == "joint":
            self.nets.append(Encoder(shape, 1, width=wider, details=True, torus=True, extra=told + spread))
        else:
            self.nets.append(Encoder(beside, 1, width=wider, details=True, torus=True, pool=True, extra=told))
        for net in self.nets:
            nn.init.normal_(net.output.weight, std=1e-2)  # type: ignore[union-attr, arg-type]

    def terms(self, x: Tensor, label: Tensor, level: Tensor, away: Tensor | None = None) -> list[Tensor]:
        """Each network's energy, without the base, `(B,)`: of value and place, or of both.

        `away` `(B, 2)`, in shares of the sides: by how much the network of the value sees its pictures moved, which in
        training makes it blind to parts of a pixel, too.
        """
        level, u = level.expand(len(x)), shrunk(x, level)
        value, place = self.value_codes[self.values[label]], self.spots[label]
        if self.parts == "sum":
            out = [
                self.nets[0](u if away is None else moved(u, away), level, value),
                self.nets[1](self._centred(u, place), level),
            ]
        elif self.parts == "joint":
            out = [self.nets[0](u, level, torch.cat((value, self.place_codes[place]), 1))]
        else:
            out = [self.nets[0](self._centred(u, place), level, value)]
        return [each.to(x.dtype).squeeze(1) / level for each in out]

    def _centred(self, u: Tensor, place: Tensor) -> Tensor:
        """Pictures `(B, C, H, W)` with their place in the middle, and where each pixel lies, `(B, C + 4, H, W)`."""
        return torch.cat((moved(u, self.centre[place] - 0.5), self.around.expand(len(u), -1, -1, -1)), dim=1)

    def forward(self, x: Tensor, label: Tensor, level: Tensor, away: Tensor | None = None) -> Tensor:
        """Energies `(B,)` at level `()` or `(B,)`; `away` `(B, 2)` as in `terms`."""
        total: Tensor = self.base(x, None, level.expand(len(x)))
        for term in self.terms(x, label, level, away):
            total = total + term
        return total

    def gradient(self, x: Tensor, label: Tensor, level: Tensor, away: Tensor | None = None) -> Tensor:
        """Gradient in x, `(B, *event)`; `away` `(B, 2)` as in `terms`."""
        return autograd_slope(partial(self, away=away), x, label, level)

    def alone(self, number: int) -> Alone:
        """One of the two energies of the sum, with the base."""
        return Alone(self, number)


class Alone(nn.Module):
    """One part of a pair, as an energy by itself."""

    def __init__(self, pair: ValuePlaceEnergy, number: int) -> None:
        super().__init__()
        self.pair, self.number = pair, number

    def forward(self, x: Tensor, label: Tensor, level: Tensor, away: Tensor | None = None) -> Tensor:
        """Energies `(B,)` of pictures `(B, C, H, W)`; `away` `(B, 2)` as in `ValuePlaceEnergy.terms`."""
        base: Tensor = self.pair.base(x, None, level.expand(len(x)))
        return base + self.pair.terms(x, label, level, away)[self.number]

    def gradient(self, x: Tensor, label: Tensor, level: Tensor, away: Tensor | None = None) -> Tensor:
        """Gradient in x, `(B, *event)`; `away` `(B, 2)` as in `terms`."""
        return autograd_slope(partial(self, away=away), x, label, level)
