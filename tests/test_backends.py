"""Every backend runs the same chain for the same noise, and says why it was chosen."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmtraj.energies.transition import PairEnergy, TiltedPairEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers import backends
from ebmtraj.samplers.backends import explain, gradient_of, value_and_gradient_of
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.samplers.mcmc import HMCConfig, MALAConfig
from ebmtraj.samplers.registry import sample

torch.set_num_threads(1)
STEPS = 100


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tilted(spectral: bool = False) -> TiltedPairEnergy:
    torch.manual_seed(0)
    return TiltedPairEnergy(0, 12, prior=1.0, width=32, depth=3, spectral=spectral, scale=2.0).eval()


START = torch.empty(16, 12).normal_(generator=seeded(1))
CONFIGS: dict[str, Any] = {
    "langevin": LangevinConfig(steps=STEPS, step_size=0.05),
    "relaxed": LangevinConfig(steps=STEPS, step_size=0.02, noise=0.01),
    "mala": MALAConfig(steps=STEPS, step_size=0.1),
    "hmc": HMCConfig(steps=STEPS // 4, step_size=0.2, leapfrog=4),
}


def chain(energy: Any, name: str, backend: str) -> Tensor:
    x, _ = sample(energy, START, dataclasses.replace(CONFIGS[name], backend=backend), generator=seeded(2))
    return x


@pytest.mark.parametrize("name", CONFIGS)
def test_analytic_and_autograd_run_one_chain(name: str) -> None:
    energy = tilted()
    reference = chain(energy, name, "autograd")
    torch.testing.assert_close(chain(energy, name, "analytic"), reference, rtol=1e-5, atol=1e-5)
    assert chain(energy, name, "auto").equal(chain(energy, name, "analytic"))
    assert not torch.allclose(chain(energy, name, "autograd"), START, atol=0.1)


@pytest.mark.parametrize("name", ["langevin", "relaxed"])
@pytest.mark.parametrize("closed", [True, False])
def test_bf16_runs_it_within_its_precision(name: str, closed: bool) -> None:
    """A gradient is off by a 128th or so; after 100 steps no entry by more than 0.05, of a spread of 1."""
    energy: nn.Module = tilted()
    if not closed:
        torch.manual_seed(0)
        energy = PairEnergy(12, width=32, spectral=False, scale=2.0)
    reference, rounded = chain(energy, name, "autograd"), chain(energy, name, "bf16")
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - reference).abs().max() < 0.05


def test_energies_are_never_rounded() -> None:
    energy = tilted()
    value, slope = value_and_gradient_of(energy, "bf16")(START, None)
    with torch.no_grad():
        assert value.equal(energy(START))
        assert not slope.equal(energy.gradient(START))
        torch.testing.assert_close(slope, energy.gradient(START), rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_compiled_runs_it_too() -> None:
    """With a closed form and without; compiled once, and let go with its energy."""
    torch.manual_seed(0)
    for energy, names in (
        (tilted(), ("langevin", "mala")),
        (tilted(spectral=True), ("langevin",)),
        (PairEnergy(12, width=32, spectral=False, scale=2.0), ("langevin",)),
    ):
        for name in names:
            reference = chain(energy, name, "autograd")
            torch.testing.assert_close(chain(energy, name, "compiled"), reference, rtol=1e-5, atol=1e-5)
        assert energy in backends._COMPILED
    count = len(backends._COMPILED)
    del energy
    gc.collect()
    assert len(backends._COMPILED) < count
    normalised = PairEnergy(12, width=32, spectral=True)  # torch can't compile autograd through spectral normalisation
    with pytest.raises(EbmtrajError, match=r"energy PairEnergy does not compile .* use backend 'auto'"):
        chain(normalised, "langevin", "compiled")


def test_an_energy_that_shares_work_is_asked_once() -> None:
    calls = []

    class Shared:
        def __call__(self, x: Tensor, context: Any) -> Tensor:
            calls.append("energy")
            return 0.5 * x.square().sum(-1)

        def value_and_gradient(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
            calls.append("both")
            return 0.5 * x.square().sum(-1), x

    x, _ = sample(Shared(), START, MALAConfig(steps=3, step_size=0.1), generator=seeded())
    assert calls == ["both"] * 4
    y, _ = sample(Shared(), START, MALAConfig(steps=3, step_size=0.1, backend="autograd"), generator=seeded())
    torch.testing.assert_close(x, y)
    assert "energy" in calls


def test_a_backend_says_why_and_refuses_what_is_not_there() -> None:
    energy = PairEnergy(12, width=8)
    assert explain(tilted()) == "energy TiltedPairEnergy: analytic: its own closed-form gradient"
    assert explain(energy).startswith(
        "energy PairEnergy: autograd: autograd, as it has no closed-form `gradient`; write one"
    )
    for backend in backends.BACKENDS:
        assert f": {backend}: " in explain(tilted(), backend) or backend == "auto"
    with pytest.raises(EbmtrajError, match="backend 'analytic': PairEnergy has no closed-form gradient"):
        explain(energy, "analytic")
    with pytest.raises(EbmtrajError, match="backend 'jit'; use one of auto, autograd, analytic, compiled, bf16"):
        gradient_of(energy, "jit")
    with pytest.raises(EbmtrajError, match="unknown sampler backend 'jit'"):
        langevin(energy, START, LangevinConfig(backend="jit"), generator=seeded())  # type: ignore[arg-type]
