"""Pictures moved on a torus, and networks to which all places are alike."""

from __future__ import annotations

import torch

from ebmtraj.energies.value_place import ValuePlaceEnergy
from ebmtraj.nets.torus import TorusEncoder, moved, wrapped


def test_a_picture_is_moved_by_whole_pixels_and_by_parts_of_one() -> None:
    x = torch.randn(3, 2, 6, 8, dtype=torch.float64)
    by = torch.tensor([[1 / 8, 0.0], [0.0, 2 / 6], [-3 / 8, 1.0]], dtype=torch.float64)
    for one, move, shifts in zip(x, by, ((0, -1), (-2, 0), (0, 3)), strict=True):
        torch.testing.assert_close(moved(one[None], move[None])[0], one.roll(shifts, (1, 2)))
    across, down = torch.meshgrid(torch.arange(8) / 8, torch.arange(6) / 6, indexing="xy")
    wave = torch.cos(2 * torch.pi * (2 * across + down + 0.2))[None, None]
    there = torch.cos(2 * torch.pi * (2 * (across + 0.03) + down + 0.05 + 0.2))[None, None]
    torch.testing.assert_close(moved(wave, torch.tensor([[0.03, 0.05]])), there)
    noise = torch.randn(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    waves = torch.fft.rfft2(noise)[:, 0, :4, :4]  # all but the highest, whose sign alone can be turned
    turned = torch.fft.rfft2(moved(noise, torch.full((2000, 2), 0.31)))[:, 0, :4, :4]
    torch.testing.assert_close(turned.abs(), waves.abs(), rtol=1e-4, atol=1e-4)


def test_all_places_are_alike_to_the_encoder() -> None:
    torch.manual_seed(3)
    net = TorusEncoder(1, 2, width=8, extra=3).double()
    x, level = torch.randn(4, 1, 16, 16).double(), torch.tensor([0.1, 0.5, 1.0, 4.0]).double()
    extra = torch.randn(4, 3).double()
    out = net(x, level, extra)
    for shift in ((1, 0), (5, 3), (-7, 2)):
        torch.testing.assert_close(net(x.roll(shift, (2, 3)), level, extra), out)
    assert not torch.allclose(net(x.flip(3), level, extra), out)  # it is not blind to what there is
    assert not torch.allclose(net(x, level, extra + 1), out)
    assert wrapped(x, 2).shape == (4, 1, 20, 20)


def test_the_value_of_a_pair_is_read_wherever_it_lies() -> None:
    classes = tuple(f"{s},{x},{y}" for s in (0.5, 1) for x in (0.0, 0.25, 1) for y in (0.0, 0.25, 1))  # 2 pixels apart
    torch.manual_seed(4)
    net = ValuePlaceEnergy((1, 16, 16), classes, width=8).double()
    x, level, here, there = torch.randn(2, 1, 16, 16).double(), torch.tensor(0.7).double(), [0, 9], [4, 13]
    at = net.terms(x, torch.tensor(here), level)
    gone = net.terms(x.roll((2, 2), (2, 3)), torch.tensor(there), level)
    for one, other in zip(at, gone, strict=True):  # value and place: the picture has gone with its place
        torch.testing.assert_close(one, other)
    left = net.terms(x.roll((2, 2), (2, 3)), torch.tensor(here), level)
    torch.testing.assert_close(left[0], at[0])
    assert not torch.allclose(left[1], at[1])
    away = net.terms(x, torch.tensor(here), level, torch.tensor([[0.25, 0.5], [0.125, 0.0]]).double())
    torch.testing.assert_close(away[0], at[0])
