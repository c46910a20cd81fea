"""Task costs: every term against its formula, against its contract, and against bad input."""

from __future__ import annotations

import math
import sys
from pathlib import Path as FilePath

import gymnasium
import pytest
import torch

from ebmtraj.datasets.coordinates import Increments, quaternion_exp, quaternion_multiply
from ebmtraj.envs.hand_cube import state_fields
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, total_size
from ebmtraj.trajectories.costs import TERMS, Path, parse_task

HAND = state_fields()
REACHER = (
    Field("joint_angles", 2, "angle", "rad", low=(-math.inf, -3.0), high=(math.inf, 3.0), entries=("joint0", "joint1")),
    Field("joint_positions", 2, "position", "m", low=(-0.27, -0.27), high=(0.27, 0.27), entries=("target_x", "target_y")),
    Field("joint_angular_velocities", 2, "plain", "rad/s"),
)
POINT = (Field("position", 2, "position", "m", low=(-1.0, -1.0), high=(1.0, 1.0)), Field("velocity", 2, "plain", "m/s"))
HORIZONS = torch.tensor([2.0, 4.0, 8.0, 16.0, 32.0])

EVERY_TERM = {
    "rotate": ("rotate axis=-x", HAND),
    "reorient": ("reorient goal=0.8,0.6,0,0", HAND),
    "joint-pose": ("joint-pose joints=FFJ3,FFJ2 goal=0.1,0.5", HAND),
    "keep-height": ("keep-height low=0.2", HAND),
    "keep-range": ("keep-range high=0.3 low=-0.1", HAND),
    "keep-straight": ("keep-straight finger=ring", HAND),
    "smooth": ("smooth", HAND),
    "obstacle": ("obstacle centre=0.1,0.2 radius=3", POINT),
    "reach": ("reach goal=0.3,-0.5", POINT),
}


def random_path(
    fields: tuple[Field, ...], batch: int = 3, steps: int = 5, seed: int = 0, times: torch.Tensor | None = None
) -> Path:
    generator = torch.Generator().manual_seed(seed)
    increments = Increments(fields)
    start = increments.project(torch.randn(batch, total_size(fields), generator=generator))
    moves = 0.3 * torch.randn(batch, steps, increments.size, generator=generator)
    states = increments.apply(start[:, None].expand(-1, steps, -1), moves)
    actions = torch.randn(batch, 4, 2, generator=generator)
    return Path(start, states, torch.arange(1.0, steps + 1) if times is None else times, actions)


@pytest.mark.parametrize("name", TERMS)
def test_contract_of_every_term(name: str) -> None:
    text, fields = EVERY_TERM[name]
    task = parse_task(text + " weight=2.5", fields)
    path = random_path(fields)
    states = path.states.double().requires_grad_(True)
    wide = Path(path.start.double(), states, path.times.double(), None if path.actions is None else path.actions.double())
    cost = task.cost(wide)
    assert cost.shape == (3,)
    assert cost.dtype == torch.float64
    (gradient,) = torch.autograd.grad(cost.sum(), states)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    direction = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        step = 1e-6 * direction
        slope = (
            task.cost(wide._replace(states=states + step)) - task.cost(wide._replace(states=states - step))
        ).sum() / 2e-6
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-5, atol=1e-7)
    (term,) = task.parts
    torch.testing.assert_close(cost, 2.5 * term(wide))  # the weight
    last = Path(wide.start[2:], states[2:], wide.times, None if wide.actions is None else wide.actions[2:])
    alone = task.rows(torch.tensor([2])).cost(last)
    torch.testing.assert_close(alone, cost[2:])  # rows do not see each other
    at_start = Path(path.start, path.start[:, None].repeat(1, 5, 1).requires_grad_(True), HORIZONS, None)  # standing still
    (gradient,) = torch.autograd.grad(task.cost(at_start).sum(), at_start.states, allow_unused=True)
    assert gradient is None or gradient.isfinite().all()
    with pytest.raises(EbmtrajError, match=rf"{name} was given planned states that are not finite"):
        task.cost(path._replace(states=path.states * math.nan))


def turned(path: Path, *turns: tuple[float, float, float]) -> Path:
    """The path with the cube turned by these world rotation vectors from the start on, one a time."""
    states = path.start[:, None].repeat(1, len(turns), 1)
    turning = quaternion_exp(torch.tensor(turns)).expand(len(states), -1, -1)
    states[..., 27:] = quaternion_multiply(turning, states[..., 27:])
    return path._replace(states=states)


def test_rotate_counts_turning_along_the_axis_from_eight_steps_on() -> None:
    path = turned(
        random_path(HAND)._replace(times=HORIZONS), (9.0, 0, 0), (2, 2, 2), (0, 0, 0.2), (0.5, 0, 0.4), (0, 0.1, 0.8)
    )
    expected = -(0.25 * 0.2 + 0.5 * 0.4 + 1.0 * 0.8)
    torch.testing.assert_close(parse_task("rotate axis=z", HAND).cost(path), torch.full((3,), expected))
    torch.testing.assert_close(parse_task("rotate axis=-z", HAND).cost(path), torch.full((3,), -expected))
    tilted = parse_task("rotate axis=0,3,4", HAND).cost(path)  # a direction: its length does not count
    torch.testing.assert_close(tilted, torch.full((3,), 0.8 * expected - 0.6 * 0.1))
    axes = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 1, 0]])
    each = parse_task("rotate axis=all", HAND).given("rotate", axis=axes)
    torch.testing.assert_close(each.cost(path), torch.tensor([expected, -expected, -0.1]))
    picked = each.rows(torch.tensor([2, 2, 0]))
    torch.testing.assert_close(picked.cost(path), torch.tensor([-0.1, -0.1, expected]))
    near = turned(path._replace(times=torch.tensor([2.0, 4.0])), (0, 0, 0.1), (0, 0, 0.3))  # none is late: all count
    torch.testing.assert_close(parse_task("rotate", HAND).cost(near), torch.full((3,), -(2 * 0.1 + 4 * 0.3) / 32))


def test_reorient_is_least_where_the_goal_is_and_pulls_no_harder_from_afar() -> None:
    path = turned(random_path(HAND)._replace(times=torch.tensor([32.0])), (0.0, 0, 0.5))
    goal = quaternion_multiply(quaternion_exp(torch.tensor([0.0, 0, 0.5])).expand(3, 4), path.start[:, 27:])
    task = parse_task("reorient", HAND)
    torch.testing.assert_close(task.given("reorient", goal=goal).cost(path), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(task.given("reorient", goal=-goal).cost(path), torch.zeros(3), atol=1e-6, rtol=0)
    for angle, wanted in ((1.0, 1.0), (2.0, 1.2)):
        far = quaternion_multiply(quaternion_exp(torch.tensor([0.0, 0, angle])).expand(3, 4), path.start[:, 27:])
        expected = torch.full((3,), (wanted - 0.5) ** 2)
        torch.testing.assert_close(task.given("reorient", goal=far).cost(path), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("angle", "soon_is_better"), [(0.15, True), (1.2, False)])
def test_reorient_looks_less_far_ahead_the_nearer_the_goal_is(angle: float, soon_is_better: bool) -> None:
    """One path is at the goal after 4 steps and turns back later; the other turns later and is there after 32."""
    path = random_path(HAND)._replace(times=torch.tensor([4.0, 32.0]))
    goal = quaternion_multiply(quaternion_exp(torch.tensor([0.0, 0, angle])).expand(3, 4), path.start[:, 27:])
    task = parse_task("reorient", HAND).given("reorient", goal=goal)
    soon = task.cost(turned(path, (0.0, 0, angle), (0.0, 0, 0.0)))
    late = task.cost(turned(path, (0.0, 0, 0.0), (0.0, 0, angle)))
    assert bool(((soon < late) == soon_is_better).all())
    w = 4 * math.exp(-4 / (4 + 32 * angle / 1.2)), 32 * math.exp(-32 / (4 + 32 * angle / 1.2))
    torch.testing.assert_close(late, torch.full((3,), angle**2 * w[0] / sum(w)), atol=1e-6, rtol=1e-4)


def test_joint_terms_against_their_formulas() -> None:
    path = random_path(HAND)
    states = path.states
    ring = states[..., 10:14]
    pairs = {
        "joint-pose joints=FFJ3,FFJ2 goal=0.1,0.5": (
            ((states[..., [2, 3]] - torch.tensor([0.1, 0.5])).square().sum(-1) * torch.arange(1.0, 6) / 15).sum(1)
        ),
        "keep-straight finger=ring tolerance=0.2": (ring.abs() - 0.2).clamp_min(0).square().sum(-1)[:, :4].mean(1),
        "keep-straight finger=RF tolerance=0": ring.square().sum(-1)[:, :4].mean(1),  # as far as actions reach
        "keep-range joints=RFJ0 margin=0.1": (
            ((0.1 - states[..., 13]).clamp_min(0) + (states[..., 13] - 1.471).clamp_min(0))[:, :4].square().mean(1)
        ),
        "keep-height low=0.5": ((0.5 - states[..., 26]).clamp_min(0) / 0.01).square().mean(1),
    }
    for text, expected in pairs.items():
        torch.testing.assert_close(parse_task(text, HAND).cost(path), expected, msg=text)
    together = parse_task(" + ".join(pairs), HAND)
    torch.testing.assert_close(together.cost(path), sum(pairs.values()))
    assert together.labels() == ["joint-pose", "keep-straight", "keep-straight-2", "keep-range", "keep-height"]
    torch.testing.assert_close(together.terms(path)["keep-straight-2"], ring.square().sum(-1)[:, :4].mean(1))
    (term,) = parse_task("keep-straight finger=RF tolerance=0", HAND).parts
    torch.testing.assert_close(term(path._replace(actions=None)), ring.square().sum(-1).mean(1))
    torch.testing.assert_close(term(path._replace(times=path.times + 9)), ring.square().sum(-1).mean(1))


def test_constraints_say_where_they_hold() -> None:
    states = torch.zeros(1, 3, 31)
    states[0, :, 11] = torch.tensor([0.59, 0.61, 0.2])  # a joint of the ring finger
    states[0, :, 10] = torch.tensor([0.0, 0.0, -0.65])
    states[0, :, 26] = torch.tensor([0.2, 0.15, 0.1])
    for text, expected, meaning in (
        ("keep-straight finger=ring", [True, False, False], "0.6 rad"),
        ("keep-straight finger=ring within=0.7", [True, True, True], "0.7 rad"),
        ("keep-range joints=RFJ2 high=0.3", [False, False, True], "0.05 rad"),
        ("keep-range joints=RFJ2 high=0.55 margin=0.2", [True, False, True], "0.05 rad"),
        ("keep-height low=0.15", [True, True, False], "0.15 m"),
    ):
        (term,) = parse_task(text, HAND).parts
        holds = term.holds(states)
        assert holds is not None
        assert holds.tolist() == [expected], text
        assert meaning in term.meaning()
    (term,) = parse_task("obstacle centre=0.3,0.3 radius=0.1 margin=0.5", POINT).parts
    holds = term.holds(torch.tensor([[[0.3, 0.39, 0, 0], [0.3, 0.41, 0, 0]]]))
    assert holds is not None
    assert holds.tolist() == [[False, True]]
    for name, (text, fields) in EVERY_TERM.items():
        (term,) = parse_task(text, fields).parts
        assert (term.holds(random_path(fields).states) is None) == (term.meaning() == ""), name


def test_progress_in_words() -> None:
    states = random_path(HAND, steps=1).start[:, None].repeat(1, 4, 1)
    turn = quaternion_exp(torch.tensor([0.0, 0.0, 0.3])).expand(3, 4)
    for t in range(1, 4):
        states[:, t, 27:] = -quaternion_multiply(turn, states[:, t - 1, 27:])
    for text, expected in (("rotate axis=0,0,2", [0, 0.3, 0.6, 0.9]), ("rotate axis=-z", [0, -0.3, -0.6, -0.9])):
        words, values = parse_task(text, HAND).parts[0].progress(states) or ("", torch.zeros(()))
        assert words.format(1.0) == "turned 1.00 rad"
        torch.testing.assert_close(values, torch.tensor(expected).expand(3, 4), atol=1e-5, rtol=0)
    task = parse_task("reorient", HAND).given("reorient", goal=states[:, 3, 27:])
    words, values = task.parts[0].progress(states) or ("", torch.zeros(()))
    torch.testing.assert_close(values, torch.tensor([0.9, 0.6, 0.3, 0]).expand(3, 4), atol=2e-3, rtol=0)
    point = torch.tensor([[[0.3, 0.0, 0, 0], [0.0, 0.4, 0, 0]]])
    words, values = parse_task("reach goal=0,0", POINT).parts[0].progress(point) or ("", torch.zeros(()))
    assert words.format(float(values[0, 1])) == "40.0 cm left"


def test_smooth_is_a_squared_change_a_step() -> None:
    start = torch.zeros(1, 4)
    states = torch.tensor([[[0.2, 0, 0, 0], [0.2, 0.8, 0, 0]]])  # 0.1 a step for two steps, then 0.4 for two
    actions = torch.tensor([[[0.0], [1.0], [3.0]]])
    path = Path(start, states, torch.tensor([2.0, 4.0]), actions)
    torch.testing.assert_close(parse_task("smooth of=states", POINT).cost(path), torch.tensor([(0.01 + 0.16) / 2]))
    torch.testing.assert_close(parse_task("smooth of=actions", POINT).cost(path), torch.tensor([2.5]))
    torch.testing.assert_close(parse_task("smooth", POINT).cost(path), torch.tensor([2.585]))
    with pytest.raises(EbmtrajError, match="these plans have no actions"):
        parse_task("smooth of=actions", POINT).cost(path._replace(actions=None))


def test_reach_and_obstacle_on_a_particle() -> None:
    states = torch.tensor([[[0.1, 0.0, 9, 9], [0.3, 0.4, 9, 9]]])
    path = Path.sequence(torch.zeros(1, 4), states)
    torch.testing.assert_close(parse_task("reach goal=0,0 when=end", POINT).cost(path), torch.tensor([25.0]))
    always = (1 * 1.0 + 2 * 25.0) / 3
    torch.testing.assert_close(parse_task("reach goal=0,0", POINT).cost(path), torch.tensor([always]))
    inside = parse_task("obstacle centre=0.3,0.3 radius=0.1 margin=0.1", POINT).cost(path)
    torch.testing.assert_close(inside, torch.tensor([0.5**2 / 2]))  # the second state is 0.1 in, of 0.2


def test_reach_knows_the_reachers_fingertip_and_target() -> None:

    env = gymnasium.make("Reacher-v5").unwrapped
    env.reset(seed=3)
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        for _ in range(20):
            env.step((2 * torch.rand(2, generator=rng) - 1).numpy())
        state = torch.tensor([*env.data.qpos, *env.data.qvel[:2]])
        gap = torch.tensor(env.get_body_com("fingertip") - env.get_body_com("target")).norm()
        path = Path.sequence(state[None], state[None, None])
        torch.testing.assert_close(parse_task("reach scale=1", REACHER).cost(path)[0], gap**2, atol=1e-6, rtol=0)
    env.close()


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("", HAND, "a term is missing"),
        ("rotate + ", HAND, "a term is missing"),
        ("rotat axis=z", HAND, "unknown task term 'rotat'; did you mean rotate"),
        ("rotate axes=z", HAND, "unknown option 'axes'; did you mean axis"),
        ("rotate axis", HAND, "'axis' is not of the form key=value"),
        ("rotate axis=z axis=x", HAND, "axis is given twice"),
        ("rotate axis=w", HAND, "unknown axis 'w'"),
        ("rotate axis=0,0,0", HAND, "axis = 0,0,0"),
        ("rotate axis=1,0", HAND, "axis = 1,0"),
        ("rotate weight=nan", HAND, "weight = nan"),
        ("rotate weight=-1", HAND, "weight = -1"),
        ("rotate weight=much", HAND, "weight = 'much' is not a number"),
        ("rotate", REACHER, "rotate: needs a field of kind quaternion, and the state has none"),
        ("rotate field=cube", HAND, "the state has no field 'cube'; it has joint_angles, cube_position"),
        ("rotate field=cube_position", HAND, "field 'cube_position' is a position"),
        ("reorient goal=1,1,0,0", HAND, "norm is 1.41"),
        ("reorient goal=1,0,0", HAND, "goal has shape"),
        ("joint-pose joints=FFJ3 goal=2.5", HAND, "goal 2.5 rad for joint FFJ3 is outside its range -0.349 to 0.349"),
        ("joint-pose joints=FJ3 goal=0", HAND, "no joint 'FJ3'; did you mean"),
        ("joint-pose goal=0.1,0.2", HAND, "goal has 2 angles for 24 joints"),
        ("keep-height", HAND, "keep-height: low is not a number; give low="),
        ("keep-height low=0.1", POINT, "field 'position' has no entry 'z'"),
        ("keep-range low=2", HAND, "no angle of joint WRJ1"),
        ("keep-straight", HAND, "which finger"),
        ("keep-straight finger=pinky", HAND, "no joints of a finger 'pinky'"),
        ("keep-straight finger=ring", POINT, "needs a field of kind angle"),
        ("smooth of=jerk", HAND, "of = 'jerk'"),
        ("obstacle centre=0,0,0 radius=1", POINT, "centre has 3 coordinates and field 'position' has 2"),
        ("obstacle centre=0,0 radius=0", POINT, "radius = 0"),
        ("obstacle centre=0,0", POINT, "radius is not a number"),
        ("reach", POINT, "no goal"),
        ("reach goal=0,2", POINT, "coordinate 2 is outside field 'position', -1 to 1"),
        ("reach goal=0.2,0.2", REACHER, "goal is 0.283 m away, and the arm is 0.21 m long"),
        ("own_terms:cost", HAND, "runs code of your own; allow it with --own-code"),
    ],
)
def test_bad_tasks_are_one_line(text: str, fields: tuple[Field, ...], message: str) -> None:
    with pytest.raises(EbmtrajError) as error:
        parse_task(text, fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_goals_for_each_row_are_checked_and_needed() -> None:
    path = random_path(HAND)
    for text, name in (("reorient", "reorient"), ("joint-pose", "joint-pose"), ("rotate axis=all", "rotate")):
        with pytest.raises(EbmtrajError, match=rf"task\.given\('{name}'"):
            parse_task(text, HAND).cost(path)
    with pytest.raises(EbmtrajError, match="norm is 2"):
        parse_task("reorient", HAND).given("reorient", goal=torch.tensor([[2.0, 0, 0, 0]]))
    with pytest.raises(EbmtrajError, match="holds NaN"):
        parse_task("reorient", HAND).given("reorient", goal=torch.full((2, 4), math.nan))
    with pytest.raises(EbmtrajError, match="has no term 'reach'; it has reorient"):
        parse_task("reorient", HAND).given("reach", goal=torch.zeros(2))
    with pytest.raises(EbmtrajError, match=r"must be \(B, 31\)"):
        parse_task("rotate", HAND).cost(random_path(POINT))


def test_own_terms_run_only_when_allowed_and_are_named(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_terms.py").write_text(
        "import torch\n"
        "def speed(path, fields, limit=1.0, label=''):\n"
        "    assert label == 'fast' and fields[0].name == 'position'\n"
        "    return (path.states[..., 2:].norm(dim=-1) - limit).clamp_min(0).sum(1)\n"
        "def root(path, fields):\n    return (path.states[:, 0, 0] * 0 - 1).sqrt()\n"
        "def broken(path, fields):\n    return path.states.nothing\n"
        "def short(path, fields):\n    return path.states.sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    path = random_path(POINT)
    task = parse_task("own_terms:speed limit=0.5 label=fast weight=3 + smooth", POINT, own_code=True)
    expected = 3 * (path.states[..., 2:].norm(dim=-1) - 0.5).clamp_min(0).sum(1)
    torch.testing.assert_close(task.terms(path)["own_terms:speed"], expected)
    for name, message in (("root", "NaN or infinite"), ("broken", "failed: AttributeError"), ("short", "gives shape")):
        with pytest.raises(EbmtrajError, match=rf"task term own_terms:{name}.*{message}"):
            parse_task(f"own_terms:{name}", POINT, own_code=True).cost(path)
    with pytest.raises(EbmtrajError, match="has no function 'absent'"):
        parse_task("own_terms:absent", POINT, own_code=True)
    with pytest.raises(EbmtrajError, match="module 'no_such' can't be imported"):
        parse_task("no_such:cost", POINT, own_code=True)
    sys.modules.pop("own_terms", None)
