"""What is left to the data: the scale of increments, and how much of the past is seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.windows import Transitions
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import make_model
from ebmtraj.trajectories.scaling import FEWEST, better_gaussianised

FIELDS = (Field("x", 2), Field("fixed", 1))
ACTION = (Field("u", 2),)
ROWS = 2 * FEWEST


def walk(move: Tensor, action: Tensor) -> Transitions:
    """A walk by moves `(R, 2)` that the actions are recorded with, and a number that never changes."""
    state = torch.cat((torch.zeros(1, 2), move.cumsum(0)))
    state = torch.cat((state, torch.full((len(state), 1), 7.0)), dim=1)
    rows = torch.arange(len(move))
    return Transitions(state, action, rows, rows)


def sticking(actions: bool = True) -> Transitions:
    """Half of the moves are hardly any, by chance."""
    noise = torch.Generator().manual_seed(0)
    spread = torch.where(torch.rand((ROWS, 2), generator=noise) < 0.5, 1e-3, 1.0)
    return walk(torch.randn((ROWS, 2), generator=noise) * spread, torch.randn((ROWS, 2), generator=noise))


def pushed() -> Transitions:
    """As many moves are hardly any, but the action decides which: a dead zone, then in proportion."""
    noise = torch.Generator().manual_seed(0)
    action = torch.randn((ROWS, 2), generator=noise)
    move = action.sign() * (action.abs() - 0.67).clamp_min(0)
    return walk(move + 1e-3 * torch.randn((ROWS, 2), generator=noise), action)


def ask(data: Transitions, actions: bool) -> bool:
    normaliser = Normaliser(FIELDS, ACTION).fit(data, gaussianise=True)
    return better_gaussianised(normaliser, data, actions=actions)


def test_the_scale_that_held_out_increments_are_better_told_on_is_chosen() -> None:
    assert ask(sticking(), actions=True)
    assert not ask(pushed(), actions=True)
    assert ask(pushed(), actions=False)  # not given the action, the same moves stick by chance


def test_likelier_increments_are_not_worth_a_worse_expectation() -> None:
    """Stops that hold fast: likelier by far on the Gaussian's scale, but rare large moves are told worse."""
    noise = torch.Generator().manual_seed(0)
    action = torch.randn((ROWS, 2), generator=noise)
    free = torch.rand((ROWS, 2), generator=noise) < 0.3
    skewed = torch.randn((ROWS, 2), generator=noise).exp()  # its expectation is far from its median
    assert not ask(walk(torch.where(free, skewed, 1e-4 * action), action), actions=False)


def test_the_question_leaves_no_trace_on_the_random_state_and_has_one_answer() -> None:
    before = torch.get_rng_state()
    assert len({ask(pushed(), actions=True) for _ in range(2)}) == 1
    assert torch.get_rng_state().equal(before)


def test_too_few_transitions_are_not_asked() -> None:
    data = pushed()
    few = Transitions(data.state[: FEWEST - 1], data.action, torch.arange(FEWEST - 2), torch.arange(FEWEST - 2))
    assert ask(few, actions=True)


@pytest.mark.parametrize(("data", "scale"), [(sticking, True), (pushed, False)], ids=["sticking", "pushed"])
@pytest.mark.parametrize("name", ["dsm", "field", "edm", "flow", "mdn", "gru"])
def test_a_model_asks_and_its_checkpoint_says_what_it_came_to(name: str, data: object, scale: bool) -> None:
    assert callable(data)
    model = model_of(name, FIELDS, {"width": 8, "depth": 1})
    assert model.config.gaussianise == "auto"
    model.prepare(data())
    assert model.normaliser.marginals.fitted is scale
    assert model.header()["network"]["gaussianise"] is scale
    # what a fixed setting gives, to the bit
    fixed = model_of(name, FIELDS, {"width": 8, "depth": 1, "gaussianise": scale})
    fixed.prepare(data())
    for key, value in fixed.normaliser.state_dict().items():
        assert model.normaliser.state_dict()[key].equal(value), key


def model_of(name: str, fields: tuple[Field, ...], network: dict[str, object]) -> TransitionModel:
    return make_model(name, fields, ACTION, actions=True, network=network)


def test_whitening_is_asked_for_alone() -> None:
    model = model_of("dsm", FIELDS, {"width": 8, "depth": 1, "whiten": True})
    model.prepare(sticking())
    assert not model.normaliser.marginals.fitted
    assert model.header()["network"]["gaussianise"] is False


@pytest.mark.parametrize(
    ("unit", "length"), [("rad/s", 0), ("m / s", 0), ("m", 2), ("", 2), ("rad/step", 2)], ids=lambda value: str(value)
)
def test_a_state_without_velocities_is_seen_with_its_past(unit: str, length: int) -> None:
    fields = (Field("x", 2), Field("v", 1, unit=unit))
    model = model_of("dsm", fields, {"width": 8, "depth": 1, "history": "auto", "previous_control": True})
    assert model.history == model.config.history == length
    assert model.config.previous_control is (length > 0)
    assert model.header()["network"]["history"] == length
    given = model_of("dsm", fields, {"width": 8, "depth": 1, "history": 1})
    assert given.history == 1  # what is asked for is kept


def test_other_words_are_refused() -> None:
    for network in ({"history": "some"}, {"gaussianise": "perhaps"}):
        with pytest.raises(EbmtrajError, match=f"network.*{next(iter(network))}"):
            make_model("dsm", FIELDS, ACTION, actions=True, network=network)
