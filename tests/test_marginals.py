"""The map of each dimension to a Gaussian's scale: exact both ways, right in its quantiles, tame beyond the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebmtraj.datasets.marginals import Marginals
from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.windows import Transitions
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.trajectories.registry import make_model

ROWS = 60_000
PROBES = torch.special.ndtr(torch.tensor([-3.5, -2.5, -1.5, -0.6, -0.3, 0.0, 0.3, 0.6, 1.5, 2.5, 3.5], dtype=torch.float64))


def draw(seed: int, rows: int = ROWS) -> Tensor:
    """A narrow spike in a slab, a heavy tail, a one-sided law and a uniform one, each of about unit spread, `(rows, 4)`."""
    noise = torch.Generator().manual_seed(seed)
    normal, second, third = torch.randn((3, rows), generator=noise)
    uniform = torch.rand(rows, generator=noise)
    spike = torch.where(uniform < 0.6, 1e-3 * normal, 1.5 * normal)
    heavy = normal / (0.5 * (second**2 + third**2)).sqrt()  # Student's t with 2 degrees of freedom: no variance
    return torch.stack((spike, 0.3 * heavy, -uniform.log() - 1, 3.5 * uniform - 1.75), dim=1)


def fitted(values: Tensor) -> Marginals:
    marginals = Marginals(values.shape[1])
    marginals.fit(values, values.amin(0), values.amax(0))
    return marginals


FITTED = fitted(draw(0))


def test_it_is_the_identity_until_it_is_fitted() -> None:
    z = torch.tensor([[-1e6, 0.3], [-4.7, 5.2], [0.0, 1e6]])
    torch.testing.assert_close(Marginals(2)(z), z)
    torch.testing.assert_close(Marginals(2).inverse(z), z)


@pytest.mark.parametrize("seed", [0, 1], ids=["seen", "held out"])
def test_what_is_known_becomes_gaussian(seed: int) -> None:
    """Quantiles to within what so many rows can tell; a Gaussian's moments."""
    z = draw(seed)
    y = FITTED(z).double()
    truth = torch.special.ndtri(PROBES).unsqueeze(1)
    density = torch.exp(-0.5 * truth**2) / (2 * torch.pi) ** 0.5
    error = 5 * (2 * PROBES * (1 - PROBES) / ROWS).sqrt().unsqueeze(1) / density  # of two samples' quantiles, 5 sigma
    assert ((torch.quantile(y, PROBES, dim=0) - truth).abs() < 0.05 + error).all()
    torch.testing.assert_close(y.mean(0), torch.zeros(4, dtype=y.dtype), rtol=0, atol=0.02)
    torch.testing.assert_close(y.std(0), torch.ones(4, dtype=y.dtype), rtol=0, atol=0.02)
    torch.testing.assert_close((y**4).mean(0), torch.full((4,), 3.0, dtype=y.dtype), rtol=0, atol=0.3)
    assert (z**4).mean(0)[1] > 50  # else this test says nothing


def test_the_inverse_is_exact_on_all_that_was_seen() -> None:
    z = draw(0)
    torch.testing.assert_close(FITTED.inverse(FITTED(z)), z, rtol=2e-6, atol=2e-6)
    shaped = z[:24].view(2, 3, 4, 4)
    assert FITTED(shaped).equal(FITTED(z[:24]).view(2, 3, 4, 4))
    assert FITTED.inverse(shaped).equal(FITTED.inverse(z[:24]).view(2, 3, 4, 4))
    y = torch.linspace(-3.5, 3.5, 500).unsqueeze(1).expand(-1, 4)
    torch.testing.assert_close(FITTED(FITTED.inverse(y)), y, rtol=0, atol=5e-3)


def test_it_rises_everywhere() -> None:
    z = draw(0).sort(dim=0).values
    far = torch.cat((z[:1] - 1e3, z[:1] - 10, z, z[-1:] + 10, z[-1:] + 1e3))
    step = FITTED(far).diff(dim=0)
    assert (step >= 0).all()
    assert (step[far.diff(dim=0) > 1e-5] > 0).all()
    y = torch.linspace(-9, 9, 2000).unsqueeze(1).expand(-1, 4)
    assert (FITTED.inverse(y).diff(dim=0) >= 0).all()


def test_nothing_explodes_beyond_the_data() -> None:
    z = draw(0)
    low, high = z.amin(0), z.amax(0)
    assert high[1] > 30  # a heavy tail
    assert FITTED(z).abs().max() <= 5 + 1e-4
    for beyond in (0.1, 1.0, 100.0):  # what is new is no further out than it is itself
        assert (FITTED(high + beyond) <= 5 + beyond + 1e-3).all()
        assert (FITTED(low - beyond) >= -5 - beyond - 1e-3).all()
    for y in (6.0, 20.0, 1e30, torch.finfo(torch.float32).max, torch.inf):
        up, down = FITTED.inverse(torch.full((1, 4), y))[0], FITTED.inverse(torch.full((1, 4), -y))[0]
        wide = 0.1 * (high - low)
        assert (up <= high + wide).all()
        assert (down >= low - wide).all()
    torch.testing.assert_close(up, high + wide)
    torch.testing.assert_close(down, low - wide)
    assert FITTED(torch.full((1, 4), 1e30)).isfinite().all()


@pytest.mark.parametrize("rows", [1, 2, 10, 300])
def test_few_rows_reach_no_further_than_their_number(rows: int) -> None:
    """The largest of n rows lies where the largest of n Gaussian ones would, not at the outermost knot."""
    z = draw(3, rows + 3)[:rows, :1]
    marginals = fitted(z)
    y = marginals(z)
    expected = -torch.special.ndtri(torch.tensor(0.5 / rows))
    assert y.abs().max() <= expected + 0.6
    torch.testing.assert_close(marginals.inverse(y), z, rtol=1e-5, atol=1e-5)


def test_a_constant_stays_and_a_spike_of_equal_values_is_spread_no_further_than_told() -> None:
    z = torch.zeros(1000, 3)
    z[:, 1] = torch.where(torch.arange(1000) < 300, 2.0, torch.linspace(-2, 2, 1000))
    z[:, 2] = torch.where(torch.arange(1000) % 2 == 0, 0.0, torch.linspace(-2, 2, 1000))
    marginals = fitted(z)
    assert marginals(z)[:, 0].eq(0).all()
    assert marginals.inverse(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))[:, 0].eq(0).all()
    assert marginals(z).isfinite().all()
    assert marginals(z).abs().max() < 5
    torch.testing.assert_close(marginals.inverse(marginals(z)), z, rtol=0, atol=1e-5)
    assert marginals.inverse(torch.tensor([[0.0, 0.0, 0.4]]))[0, 2].abs() < 1e-3  # within the spike


def sticking(noise: torch.Generator, rows: int = 3000) -> Transitions:
    moved = torch.randn((rows, 2), generator=noise) * torch.where(torch.rand((rows, 2), generator=noise) < 0.5, 1e-3, 1.0)
    still = torch.full((rows + 1, 1), 7.0)
    state = torch.cat((torch.cat((torch.zeros(1, 2), moved.cumsum(0))), still), dim=1)
    return Transitions(state, None, torch.arange(rows), torch.arange(rows))


def test_the_normaliser_goes_there_and_back() -> None:
    data = sticking(torch.Generator().manual_seed(0))
    fields = (Field("x", 3),)
    normaliser = Normaliser(fields, ()).fit(data, gaussianise=True)
    batch = data.at(torch.arange(len(data)))
    z = normaliser.delta(batch.state, batch.next_state)
    torch.testing.assert_close(z[:, :2].std(0), torch.ones(2), rtol=0, atol=0.02)
    torch.testing.assert_close((z[:, :2] ** 4).mean(0), torch.full((2,), 3.0), rtol=0, atol=0.3)
    torch.testing.assert_close(normaliser.advance(batch.state, z), batch.next_state, rtol=0, atol=1e-4)
    wild = normaliser.advance(batch.state, torch.full_like(z, 1e6)) - batch.state
    most, least = (batch.next_state - batch.state).amax(0), (batch.next_state - batch.state).amin(0)
    torch.testing.assert_close(wild, (most + 0.1 * (most - least)).expand_as(wild), rtol=0, atol=1e-3)
    other = Normaliser(fields, ())
    other.load_state_dict(normaliser.state_dict())
    assert other.delta(batch.state, batch.next_state).equal(z)
    plain = Normaliser(fields, ()).fit(data)
    torch.testing.assert_close(plain.delta(batch.state, batch.next_state).std(0)[:2], torch.ones(2), rtol=0, atol=1e-3)
    assert (plain.delta(batch.state, batch.next_state) ** 4).mean(0)[0] > 4.5


@pytest.mark.parametrize("model", ["dsm", "field", "gaussian", "ensemble", "mdn", "edm", "flow", "gru"])
def test_whitened_and_gaussianised_at_once_is_refused(model: str) -> None:
    network = {"whiten": True, "gaussianise": True}
    with pytest.raises(EbmtrajError, match=r"whiten and gaussianise don't go together; set one of them to false$"):
        make_model(model, (Field("x", 2),), (), actions=False, network=network)
    with pytest.raises(EbmtrajError, match="don't go together"):
        Normaliser((Field("x", 3),), ()).fit(sticking(torch.Generator()), whiten=True, gaussianise=True)
