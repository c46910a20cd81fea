"""Increments against scipy's rotations, and against their own inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from ebmtraj.datasets import coordinates as c
from ebmtraj.fields import Coupling, Field

FIELDS = (Field("joint", 2, "angle"), Field("cube", 3, "position"), Field("turn", 4, "quaternion"), Field("speed", 2))
INCREMENTS = c.Increments(FIELDS)


def unit_quaternions(count: int, seed: int = 0) -> Tensor:
    q = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return q / q.norm(dim=-1, keepdim=True)


def scipy_rotation(q: Tensor) -> Rotation:
    return Rotation.from_quat(q[..., [1, 2, 3, 0]].numpy())


def random_states(count: int, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    plain = torch.randn(count, 11, generator=noise, dtype=torch.float64)
    plain[:, :2] = (2 * torch.rand(count, 2, generator=noise, dtype=torch.float64) - 1) * torch.pi
    plain[:, 5:9] = unit_quaternions(count, seed + 1)
    return plain


def test_quaternions_agree_with_scipy() -> None:
    p, q = unit_quaternions(500, 1), unit_quaternions(500, 2)
    product = scipy_rotation(p) * scipy_rotation(q)
    np.testing.assert_allclose(scipy_rotation(c.quaternion_multiply(p, q)).as_matrix(), product.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(c.rotation_matrix(p).reshape(-1, 3, 3), scipy_rotation(p).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(c.rotation_matrix(-p), c.rotation_matrix(p), atol=0)
    np.testing.assert_allclose(c.quaternion_log(p), scipy_rotation(p).as_rotvec(), atol=1e-9)
    np.testing.assert_allclose(c.quaternion_log(-p), scipy_rotation(p).as_rotvec(), atol=1e-9)
    vectors = 2 * torch.randn(500, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    np.testing.assert_allclose(
        scipy_rotation(c.quaternion_exp(vectors)).as_matrix(), Rotation.from_rotvec(vectors.numpy()).as_matrix(), atol=1e-12
    )
    inverse = c.quaternion_multiply(p, c.quaternion_conjugate(p))
    np.testing.assert_allclose(inverse, [[1, 0, 0, 0]] * 500, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_and_log_are_inverse_at_every_angle(dtype: torch.dtype) -> None:
    axis = torch.tensor([0.6, -0.48, 0.64], dtype=dtype)
    for angle in (0.0, 1e-30, 1e-9, 1e-7, 1e-5, 1e-3, 0.1, 1.0, 3.0, math.pi - 1e-3):
        turned = c.quaternion_log(c.quaternion_exp(axis * angle))
        torch.testing.assert_close(turned, axis * angle, rtol=2e-6 if dtype == torch.float32 else 1e-9, atol=1e-12)
    assert c.quaternion_log(c.quaternion_exp(axis * math.pi)).norm().item() == pytest.approx(math.pi, abs=1e-5)
    beyond = c.quaternion_log(c.quaternion_exp(axis * 4.0))  # the shorter way round
    torch.testing.assert_close(beyond, axis * (4.0 - 2 * math.pi), rtol=1e-5, atol=1e-5)


def test_a_turn_is_seen_in_the_world_frame() -> None:
    """Turning both states by one rotation from the left turns the increment by it, and from the right leaves it alone."""
    a, b, world, body = (unit_quaternions(200, seed) for seed in (1, 2, 3, 4))
    turning = c.Increments((Field("turn", 4, "quaternion"),))
    increment = turning.between(a, b)
    left = turning.between(c.quaternion_multiply(world, a), c.quaternion_multiply(world, b))
    np.testing.assert_allclose(left, scipy_rotation(world).apply(increment.numpy()), atol=1e-9)
    right = turning.between(c.quaternion_multiply(a, body), c.quaternion_multiply(b, body))
    np.testing.assert_allclose(right, increment, atol=1e-9)
    quarter = torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64)
    start = c.quaternion_exp(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    np.testing.assert_allclose(turning.between(start, turning.apply(start, quarter)), quarter, atol=1e-12)


def test_a_turn_in_the_body_frame() -> None:
    """q' = q exp(w): the world-frame vector seen from the body, and what turns both states from the left leaves it alone."""
    fields = (Field("turn", 4, "quaternion"),)
    world, body = c.Increments(fields), c.Increments(fields, "body")
    a, b, turn = (unit_quaternions(200, seed) for seed in (1, 2, 3))
    seen = body.between(a, b)
    frame = c.rotation_matrix(a).unflatten(-1, (3, 3))  # R: from the body to the world
    torch.testing.assert_close(seen, (frame.mT @ world.between(a, b).unsqueeze(-1)).squeeze(-1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(seen, (scipy_rotation(a).inv() * scipy_rotation(b)).as_rotvec(), atol=1e-9)
    left = body.between(c.quaternion_multiply(turn, a), c.quaternion_multiply(turn, b))
    torch.testing.assert_close(left, seen, rtol=0, atol=1e-9)
    assert (seen - world.between(a, b)).abs().max() > 1


def test_few_quaternions_multiply_as_many_do() -> None:
    p, q = unit_quaternions(3000, 3).float(), unit_quaternions(3000, 4).float()
    assert p.numel() > c.FEW
    np.testing.assert_allclose(c.quaternion_multiply(p[:20], q[:20]), c.quaternion_multiply(p, q)[:20], atol=1e-6)
    one = c.quaternion_multiply(p[0], q[:20].unflatten(0, (4, 5)))  # shapes meet
    np.testing.assert_allclose(one.flatten(0, 1), c.quaternion_multiply(p[:1].expand(3000, 4), q)[:20], atol=1e-6)


def test_the_difference_of_a_quaternion_is_of_the_nearer_sign() -> None:
    numbers = c.Increments((Field("turn", 4, "quaternion"),), "quaternion")
    a, b = unit_quaternions(200, 1), unit_quaternions(200, 2)
    d = numbers.between(a, b)
    near = torch.minimum((b - a).norm(dim=-1), (b + a).norm(dim=-1))
    torch.testing.assert_close(d.norm(dim=-1), near, rtol=0, atol=1e-12)
    assert numbers.between(a, -b).equal(d)
    wild = numbers.apply(a, 100 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    torch.testing.assert_close(wild.norm(dim=-1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ((wild * a).sum(-1) >= 0).all()
    assert numbers.apply(a, -a).equal(a)  # no direction is left
    assert numbers.names() == ["turn.w", "turn.x", "turn.y", "turn.z"]


@pytest.mark.parametrize(("rotation", "size"), [("world", 10), ("body", 10), ("quaternion", 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_rotation_is_inverted(rotation: c.Rotation, size: int, dtype: torch.dtype) -> None:
    increments = c.Increments(FIELDS, rotation)
    a, b = random_states(500, 1).to(dtype), random_states(500, 8).to(dtype)
    d = increments.between(a, b)
    assert d.shape == (500, increments.size) == (500, size)
    assert len(increments.names()) == len(set(increments.names())) == size
    back, turn = increments.apply(a, d), slice(5, 9)
    nearer = torch.where((a * b)[:, turn].sum(-1, keepdim=True) < 0, -b[:, turn], b[:, turn])
    tolerance = 2e-6 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(back[:, turn], nearer, rtol=0, atol=tolerance)  # sign and all
    torch.testing.assert_close(back[:, 2:5], b[:, 2:5], rtol=0, atol=tolerance)
    torch.testing.assert_close(increments.between(a, back), d, rtol=0, atol=10 * tolerance)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
def test_apply_is_the_inverse_of_between(seed: int, dtype: torch.dtype) -> None:
    a, b = random_states(16, seed).to(dtype), random_states(16, seed + 7).to(dtype)
    tolerance = 5e-5 if dtype == torch.float32 else 1e-9
    d = INCREMENTS.between(a, b)
    assert d.shape == (16, 10)
    assert d[:, :2].abs().max() <= math.pi + 1e-6
    assert d[:, 5:8].norm(dim=-1).max() <= math.pi + 1e-6
    back = INCREMENTS.apply(a, d)
    torch.testing.assert_close(back[:, 5:9].norm(dim=-1), torch.ones(16, dtype=dtype), rtol=0, atol=1e-6)
    torch.testing.assert_close(INCREMENTS.features(back)[:, 2:], INCREMENTS.features(b)[:, 2:], rtol=0, atol=tolerance)
    wrapped = torch.remainder(back[:, :2] - b[:, :2] + 1, 2 * math.pi) - 1  # equal as angles
    torch.testing.assert_close(wrapped, torch.zeros_like(wrapped), rtol=0, atol=tolerance)
    again = INCREMENTS.between(a, INCREMENTS.apply(a, 0.3 * d))
    torch.testing.assert_close(again, 0.3 * d, rtol=0, atol=tolerance)


def test_angles_wrap() -> None:
    turning = c.Increments((Field("joint", 1, "angle"),))
    a, b = torch.tensor([[3.0]]), torch.tensor([[-3.0]])
    assert turning.between(a, b).item() == pytest.approx(2 * math.pi - 6, abs=1e-6)
    assert turning.between(b, a).item() == pytest.approx(6 - 2 * math.pi, abs=1e-6)
    assert turning.between(a, a + 8 * math.pi).item() == pytest.approx(0, abs=1e-5)


def test_the_sign_of_an_applied_turn_is_continuous() -> None:
    """Two full turns in small steps: never a jump, and q comes home by way of -q."""
    turning = c.Increments((Field("turn", 4, "quaternion"),))
    start = unit_quaternions(8, 5)
    step = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = step / step.norm(dim=-1, keepdim=True) * (2 * math.pi / 100)
    q, path = start, []
    for _ in range(200):
        ahead = turning.apply(q, step)
        assert ((ahead * q).sum(-1) > 0.99).all()
        path.append(q := ahead)
    torch.testing.assert_close(path[99], -start, rtol=0, atol=1e-9)
    torch.testing.assert_close(path[199], start, rtol=0, atol=1e-9)


def test_project() -> None:
    state = random_states(6)
    loose = state.clone()
    loose[:, 5:9] *= torch.tensor([1.0, -1.0, 3.0, -0.2, 0.0, 1e-9], dtype=torch.float64).unsqueeze(-1)
    unit = INCREMENTS.project(loose)
    torch.testing.assert_close(unit[:, 5:9].norm(dim=-1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(unit[4:, 5:9], torch.tensor([[1.0, 0, 0, 0]] * 2, dtype=torch.float64))
    assert unit[:, :5].equal(loose[:, :5])
    assert unit[:, 9:].equal(loose[:, 9:])
    signed = INCREMENTS.project(loose[:4], state[:4])
    torch.testing.assert_close(signed, state[:4])


def test_names_and_sizes() -> None:
    assert (INCREMENTS.state_size, INCREMENTS.size, INCREMENTS.feature_size) == (
        11,
        10,
        18,
    )
    names = INCREMENTS.names()
    assert len(names) == len(set(names)) == 10
    assert names[5:8] == ["turn.x", "turn.y", "turn.z"]


def test_an_angle_that_turns_without_end_is_seen_as_a_point_on_a_circle() -> None:
    hinge = Field("hinge", 3, "angle", low=(-math.inf, -1.0, -math.inf), high=(math.inf, 1.0, math.inf))
    fields = (Field("x", 1), hinge, Field("cube", 4, "quaternion"))
    state = torch.tensor([[5.0, 0.3, 0.5, -2.0, 1.0, 0.0, 0.0, 0.0]])
    seen = c.Increments(fields).features(state)[0]
    expected = [5.0, 0.5, math.sin(0.3), math.sin(-2), math.cos(0.3), math.cos(-2), *torch.eye(3).flatten().tolist()]
    assert seen.tolist() == pytest.approx(expected)
    assert c.Increments(fields).feature_size == len(expected)
    turned = state + torch.tensor([0, 2 * torch.pi, 0, -4 * torch.pi, 0, 0, 0, 0])
    torch.testing.assert_close(c.Increments(fields).features(turned)[0], seen)
    torch.testing.assert_close(c.Increments(fields).between(state, turned), torch.zeros(1, 7), rtol=0, atol=1e-5)
    assert c.Increments((hinge, hinge)).feature_size == 10


def cube_angle(p: Tensor, q: Tensor) -> Tensor:
    """Least angle, rad, between poses of a cube, over its 24 symmetric ones, by scipy's own group."""
    return torch.from_numpy(
        np.min([(scipy_rotation(p) * turn * scipy_rotation(q).inv()).magnitude() for turn in Rotation.create_group("O")], 0)
    )


def test_a_cubes_symmetric_poses_are_seen_alike() -> None:
    q = unit_quaternions(300)
    seen = c.cube_features(q)
    assert seen.shape == (300, 24)
    np.testing.assert_allclose(c.cube_features(-q), seen, atol=0)
    group = Rotation.create_group("O")
    assert len(group) == len(c.CUBE_SYMMETRIES) == 24
    for turn in group:
        turned = torch.from_numpy((scipy_rotation(q) * turn).as_quat()[:, [3, 0, 1, 2]])
        np.testing.assert_allclose(c.cube_features(turned), seen, atol=1e-12)
    field = Field("cube", 4, "quaternion", symmetry="cube")
    both = c.Increments((Field("x", 2), field))
    assert both.feature_size == 26
    assert both.features(torch.cat((q[:, :2], q), dim=1))[:, 2:].equal(seen)
    state = torch.cat((q[:-1], q[1:]), dim=1)  # the increment is that of any quaternion
    assert (
        c.Increments((field,))
        .between(state[:, :4], state[:, 4:])
        .equal(c.Increments((Field("cube", 4, "quaternion"),)).between(state[:, :4], state[:, 4:]))
    )


def test_other_poses_of_a_cube_are_told_apart_by_their_angle() -> None:
    """Both parts grow with the angle to the nearest symmetric pose: the moments smoothly, the matrix by its chord."""
    p = unit_quaternions(2000, 1)
    small = 0.05 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    near = c.quaternion_multiply(c.quaternion_exp(small), p)
    for q in (unit_quaternions(2000, 3), near):
        angle = cube_angle(p, q)
        apart = c.cube_features(p) - c.cube_features(q)
        assert (apart[:, :15].norm(dim=-1) > 0.7 * torch.sin(angle)).all()
        chord = 8**0.5 * torch.sin(angle / 2)  # Frobenius distance of two rotations so far apart
        assert (apart[:, 15:].norm(dim=-1) > chord - 1e-9).all()
    assert cube_angle(p, near).median() < 0.1
    moved = (c.cube_features(p) - c.cube_features(near))[:, :15].norm(dim=-1)
    assert (moved < 1.8 * cube_angle(p, near)).all()  # smooth: no jump


def test_couplings_are_seen_before_their_field() -> None:
    pair = (Coupling("a", (2, 0), (1.0, -0.5)), Coupling("b", (1,), (3.0,)))
    field = Field("joint", 3, "angle", low=(-2.0,) * 3, high=(2.0,) * 3, couplings=pair)
    seen = c.Increments((Field("x", 1), field)).features(torch.tensor([[9.0, 1.0, 0.2, 0.3]]))
    torch.testing.assert_close(seen, torch.tensor([[9.0, 0.3 - 0.5, 0.6, 1.0, 0.2, 0.3]]))
    half = Field("joint", 2, "angle", low=(-1.0, -math.inf), high=(1.0, math.inf), couplings=(Coupling("a", (0,), (2.0,)),))
    assert c.Increments((half,)).feature_size == 4
    seen = c.Increments((half,)).features(torch.tensor([[0.5, 0.3]]))
    torch.testing.assert_close(seen, torch.tensor([[1.0, 0.5, math.sin(0.3), math.cos(0.3)]]))


def test_the_hands_couplings_are_mujocos_own_tendon_lengths() -> None:
    import mujoco

    from ebmtraj.envs.hand_cube import build_model, physics_of, state_fields

    model, fields = build_model(), state_fields()
    data = mujoco.MjData(model)
    couplings = fields[0].couplings
    assert couplings is not None
    assert [coupling.name for coupling in couplings] == ["T_FFJ1c", "T_MFJ1c", "T_RFJ1c", "T_LFJ1c"]
    joints = np.random.default_rng(0).uniform(-1, 1, (30, 24))
    state = torch.zeros(30, 31, dtype=torch.float64)
    state[:, :24], state[:, 27:] = torch.from_numpy(joints), unit_quaternions(30)
    seen = c.Increments(fields).features(state)[:, : len(couplings)].numpy()
    lengths = np.empty((30, len(couplings)))
    for i in range(30):
        data.qpos[:] = physics_of(state[i : i + 1].numpy())[0, 1 : 1 + model.nq]
        mujoco.mj_forward(model, data)
        lengths[i] = [data.ten_length[model.tendon(f"robot0:{coupling.name}").id] for coupling in couplings]
    scale = lengths[0] / seen[0]  # radians of the first joint against the tendon's own unit
    np.testing.assert_allclose(seen * scale, lengths, rtol=1e-5, atol=1e-8)
    assert lengths.std(0).min() > 0
    assert fields[2].symmetry == "cube"
