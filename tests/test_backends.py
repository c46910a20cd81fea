"""Every backend runs the same chain for the same noise, and says why it was chosen."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.energies.transition import PairEnergy, TiltedPairEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers import analytic, backends, compiled
from ebmtraj.samplers.backends import explain, gradient_of, value_and_gradient_of
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.samplers.mcmc import HMCConfig, MALAConfig
from ebmtraj.samplers.registry import sample

torch.set_num_threads(1)
CUDA = torch.cuda.is_available()
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


class Images(nn.Module):
    """A convolutional energy as a user writes one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.output = nn.Linear(8, 1)

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        h = F.silu(self.second(F.silu(self.first(x))))
        return self.output(h.sum((2, 3))).squeeze(-1) + 0.5 * x.square().sum((1, 2, 3))


def plain(spectral: bool = False) -> PairEnergy:
    torch.manual_seed(0)
    return PairEnergy(12, width=32, depth=3, spectral=spectral, scale=2.0)


def images() -> Images:
    torch.manual_seed(0)
    return Images()


PICTURES = torch.empty(6, 1, 8, 8).normal_(generator=seeded(1))
ENERGIES: dict[str, tuple[Any, Tensor]] = {
    "closed form": (tilted, START),
    "plain": (plain, START),
    "plain, many": (plain, torch.empty(300, 12).normal_(generator=seeded(1))),  # in several blocks
    "plain, spectral norm": (lambda: plain(spectral=True), START),
    "convolutions": (images, PICTURES),
}
FP32 = {"auto", "analytic", "channels_last"}
CASES = [(kind, backend) for kind in ENERGIES for backend in ("auto", "analytic", "channels_last", "bf16")]
CASES = [case for case in CASES if case[1] != "analytic" or case[0] != "convolutions"]
COMPILED = [pytest.param(kind, "compiled", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]) for kind in ENERGIES]
GRAPHS = [
    pytest.param(kind, "cuda_graph", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")])
    for kind in ENERGIES
]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")  # torch.compile's own
@pytest.mark.parametrize("name", ["langevin", "relaxed"])
@pytest.mark.parametrize(("kind", "backend"), [*CASES, *COMPILED, *GRAPHS])
def test_all_backends_run_one_chain(kind: str, backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 within 1e-5 after 100 steps; in bf16, where a gradient is off by a 128th or so, within 0.05 (spread: 1)."""
    monkeypatch.setattr(analytic, "BLOCK", 1 << 15)
    make, start = ENERGIES[kind]
    device = "cuda" if backend == "cuda_graph" else "cpu"
    energy, start, config = make().to(device), start.to(device), CONFIGS[name]

    def run(backend: str) -> tuple[Tensor, Tensor]:
        noise = torch.Generator(device).manual_seed(2)
        x, _ = langevin(energy, start, dataclasses.replace(config, backend=backend), generator=noise)
        return x, torch.empty(3, device=device).normal_(generator=noise)

    (reference, after), (x, also_after) = run("autograd"), run(backend)
    assert x.dtype == torch.float32
    assert also_after.equal(after)  # the same noise was drawn, and no more
    assert not torch.allclose(reference, start, atol=0.1)
    if backend == "bf16":
        assert 0 < (x - reference).abs().max() < 0.05
    else:
        torch.testing.assert_close(x, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mala", "hmc"])
@pytest.mark.parametrize("kind", ENERGIES)
def test_all_backends_accept_the_same_proposals(kind: str, name: str) -> None:
    make, start = ENERGIES[kind]
    energy, runs = make(), []
    for backend in ("autograd", "auto"):
        config = dataclasses.replace(CONFIGS[name], backend=backend)
        runs.append(sample(energy, start, config, generator=seeded(2)))
    torch.testing.assert_close(runs[1][0], runs[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(runs[1][1].acceptance, runs[0][1].acceptance)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
@pytest.mark.parametrize("name", ["mala", "hmc"])
@pytest.mark.parametrize("kind", ["closed form", "plain"])
def test_compiled_steps_accept_the_same_proposals(kind: str, name: str) -> None:
    """Held, bounded, jittered and thinned: whatever a chain can have; and a number of steps that leaves some over."""
    make, start = ENERGIES[kind]
    energy, runs = make(), []
    settings: dict[str, Any] = {
        "steps": 37,
        "warmup": 5,
        "keep": 3,
        "temperature": 0.7,
        "scale": tuple(START.abs()[0] + 0.5),
    }
    if name == "hmc":
        settings["jitter"] = 0.2
    mask = torch.arange(12) > 1
    for backend in ("autograd", "compiled"):
        config = dataclasses.replace(CONFIGS[name], backend=backend, **settings)
        noise = seeded(2)
        x, info = sample(energy, start, config, mask=mask, project=lambda x: x.clamp(-2.5, 2.5), generator=noise)
        runs.append((x, info.states, info.acceptance, noise.get_state()))
    for given, expected in zip(runs[1], runs[0], strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    assert 0.1 < float(runs[0][2].mean()) < 0.99


def test_convolutions_lie_as_before_when_a_chain_is_over() -> None:
    energy, laid = images(), []

    def project(x: Tensor) -> Tensor:
        laid.append([p.stride() for p in (energy.first.weight, energy.second.weight)])
        return x

    before = {name: (p.data_ptr(), p.stride()) for name, p in energy.named_parameters()}
    langevin(energy, PICTURES, LangevinConfig(steps=2), project=project, generator=seeded())
    assert laid[-1] == [(9, 1, 3, 1), (72, 1, 24, 8)]  # by channels, that of the single one too
    assert {name: (p.data_ptr(), p.stride()) for name, p in energy.named_parameters()} == before


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(EbmtrajError, match="backend 'cuda_graph': the chain is on cpu and needs a CUDA device"):
        chain(tilted(), "langevin", "cuda_graph")


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
def test_what_is_compiled_is_let_go_with_its_energy() -> None:
    energy = tilted(spectral=True)
    torch.testing.assert_close(
        chain(energy, "langevin", "compiled"), chain(energy, "langevin", "autograd"), rtol=1e-5, atol=1e-5
    )
    assert energy in compiled._COMPILED
    del energy
    gc.collect()
    assert not len(compiled._COMPILED)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")
def test_what_does_not_compile_is_said() -> None:
    def stubborn(x: Tensor, context: None) -> Tensor:
        return 0.5 * x.square().sum(-1) * float(x[0, 0] > -99)

    with pytest.raises(EbmtrajError, match=r"energy stubborn does not compile .* use backend 'auto'"):
        chain(stubborn, "langevin", "compiled")


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
    assert explain(tilted()) == "energy TiltedPairEnergy: analytic: its own closed-form gradient"
    assert explain(plain()).startswith("energy PairEnergy: analytic: a plain network")
    assert explain(images()).startswith("energy Images: channels_last: autograd with convolutions laid out")
    assert explain(images(), x=PICTURES).startswith("energy Images: channels_last: ")
    assert explain(bowl) == (
        "energy bowl: autograd: autograd, as it has no closed-form `gradient` and is no plain network; write one, or try "
        "backend 'compiled' for long chains of one shape"
    )
    assert explain(plain(), x=START, context=START).startswith("energy PairEnergy: autograd: ")
    for backend in backends.BACKENDS:
        assert f": {backend}: " in explain(tilted(), backend) or backend == "auto"
    with pytest.raises(EbmtrajError, match="backend 'analytic': function has no closed-form gradient"):
        explain(bowl, "analytic")
    with pytest.raises(EbmtrajError, match="backend 'analytic': PairEnergy has no closed-form gradient"):
        gradient_of(plain(), "analytic")(START, START)
    with pytest.raises(
        EbmtrajError, match="backend 'jit'; use one of auto, autograd, analytic, channels_last, bf16, compiled"
    ):
        gradient_of(plain(), "jit")
    with pytest.raises(EbmtrajError, match="unknown sampler backend 'jit'"):
        langevin(plain(), START, LangevinConfig(backend="jit"), generator=seeded())  # type: ignore[arg-type]


def bowl(x: Tensor, context: Any = None) -> Tensor:
    return 0.5 * x.square().sum(-1)
