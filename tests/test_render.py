"""Frames from states; skipped only where OpenGL itself is missing."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ebmtraj.envs import render
from ebmtraj.envs.hand_cube import HandCubeEnv
from ebmtraj.envs.pictures import make_picturer
from ebmtraj.envs.registry import HAND_CUBE_ID, PARTICLE_ID, make_batch
from ebmtraj.envs.render import Renderer, can_render
from ebmtraj.envs.scenery import BACKGROUND, Overlay
from ebmtraj.errors import EbmtrajError


def state(yaw=0.0, scale=1.0):
    values = np.zeros(31)
    values[24:27] = (1.0, 0.88, 0.17)
    values[27], values[30] = scale * np.cos(yaw / 2), scale * np.sin(yaw / 2)
    return values


@pytest.fixture(scope="module")
def renderer():
    try:
        made = Renderer("hand-cube", 96, 64)
    except EbmtrajError as error:
        if "cannot start OpenGL" in str(error):
            pytest.skip(str(error))
        raise
    yield made
    made.close()


def test_frames_show_the_turn_of_the_cube(renderer):
    frames = renderer.frames([state(), state(np.pi / 2), state(0.3), state()])
    assert frames.shape == (4, 64, 96, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[0], frames[3])
    # A quarter turn leaves the outline of the cube: only its lettered faces can tell.
    assert (np.abs(frames[0].astype(int) - frames[1]).max(-1) > 30).mean() > 0.01
    assert (frames[0] != frames[2]).any()


def test_picture_has_background_hand_and_coloured_cube(renderer):
    pixels = renderer.frame(state()).reshape(-1, 3).astype(int)
    colourful = pixels.max(1) - pixels.min(1) > 80
    background = (np.abs(pixels - np.array(BACKGROUND)) < 4).all(1)
    assert 0.02 < colourful.mean() < 0.3
    assert 0.2 < background.mean() < 0.8
    assert (~colourful & ~background).mean() > 0.15  # the hand


def test_quaternion_is_normalised_and_sign_is_free(renderer):
    np.testing.assert_array_equal(renderer.frame(state(0.4)), renderer.frame(state(0.4, scale=1.7)))
    np.testing.assert_array_equal(renderer.frame(state(0.4)), renderer.frame(state(0.4, scale=-1.0)))


def test_environment_renders_and_passes_the_checker(renderer):
    import gymnasium

    env = gymnasium.make(HAND_CUBE_ID, render_mode="rgb_array", width=64, height=48)
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.render().shape == (48, 64, 3)
    env.close()


def test_close_is_final_and_repeatable(renderer):
    with Renderer("hand-cube", 32, 32) as other:
        frame = other.frame(state())
    other.close()
    with pytest.raises(EbmtrajError, match="closed"):
        other.frame(state())
    assert frame.shape == (32, 32, 3)
    assert renderer.frame(state()).shape == (64, 96, 3)  # one renderer's end leaves the others


def test_bad_states(renderer):
    with pytest.raises(EbmtrajError, match="shape"):
        renderer.frame(np.zeros(30))
    with pytest.raises(EbmtrajError, match="NaN"):
        renderer.frame(np.full(31, np.nan))


def test_what_can_be_rendered():
    assert can_render("hand-cube")
    assert can_render(HAND_CUBE_ID)
    assert not can_render("Reacher-v5")
    with pytest.raises(EbmtrajError, match="Reacher-v5: its states cannot be drawn; only hand-cube"):
        Renderer("Reacher-v5")
    with pytest.raises(EbmtrajError, match="size 0 x 10"):
        Renderer("hand-cube", 0, 10)
    with pytest.raises(EbmtrajError, match="render_mode"):
        HandCubeEnv().render()


def test_missing_opengl_names_the_mend(monkeypatch):
    def no_gl(*_):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'\nmore")

    monkeypatch.setattr(render, "_gl_context", no_gl)
    with pytest.raises(EbmtrajError, match=r"apt install libegl1 libgl1-mesa-dri.*MUJOCO_GL=osmesa") as caught:
        Renderer("hand-cube")
    assert "\n" not in str(caught.value)


def test_backend_choice(monkeypatch):
    monkeypatch.setattr(render.sys, "platform", "linux")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert render.gl_backends() == ("egl",)
    monkeypatch.setenv("DISPLAY", ":0")
    assert render.gl_backends() == ("egl", "glfw")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert render.gl_backends() == ("osmesa",)


def test_overlays_show_plan_turn_and_goal():
    try:
        picturer = make_picturer("hand-cube", {}, (160, 160))
    except EbmtrajError as error:
        pytest.skip(str(error))
    with picturer:
        plain = picturer.frame(state()).astype(int)
        later = state(0.5)
        later[3] = 1.2  # a finger bends
        blue = picturer.frame(state(), Overlay(plan=[later, later])) - plain
        assert (blue[..., 2] - blue[..., 0] > 40).mean() > 0.003
        turn = [picturer.frame(state(), Overlay(axis=(0, 0, sign))).astype(int) for sign in (1.0, -1.0)]
        for one in turn:
            orange = (one[..., 0] > 120) & (one[..., 2] < 40) & (np.abs(one - plain).max(-1) > 60)
            assert orange.mean() > 0.002
        assert (np.abs(turn[0] - turn[1]).max(-1) > 60).any()  # the arrow says which way
        goal = np.abs(picturer.frame(state(), Overlay(goal=(1.0, 0.0, 0.0, 0.0))) - plain).max(-1) > 60
        assert goal[:60, 100:].mean() > 0.1
        assert goal[60:].mean() < 0.01
        np.testing.assert_array_equal(picturer.frame(state()), plain)


def test_robots_are_drawn_from_their_joints(renderer):
    with make_picturer("Reacher-v5", {}, (96, 96)) as picturer:
        bent = make_batch("Reacher-v5").reset([np.random.default_rng(0)])[0]
        straight = bent.copy()
        straight[:2] = 0.0
        assert (picturer.frame(bent) != picturer.frame(straight)).any()
        assert (picturer.frame(bent, Overlay(plan=[straight])) != picturer.frame(bent)).any()
    with pytest.raises(EbmtrajError, match="cannot be drawn"):
        make_picturer("Reacher-v5", {}, (96, 96), state="observation")
    with pytest.raises(EbmtrajError, match=r"MountainCar.*cannot be drawn"):
        make_picturer("MountainCarContinuous-v0", {}, (96, 96))


def test_the_particle_is_drawn_without_opengl():
    with make_picturer(PARTICLE_ID, {"obstacles": [[0.25, 0.75, 0.1]]}, (100, 100), discs=[(0.75, 0.75, 0.1)]) as picturer:
        frame = picturer.frame([0.5, 0.25, 0.9, 0.1], Overlay(plan=[[0.5, 0.5, 0.9, 0.1]], past=np.full((3, 4), 0.2)))
    frame = frame.astype(int)
    at = lambda x, y: frame[round(95 - 90 * y), round(5 + 90 * x)]  # noqa: E731
    np.testing.assert_array_equal(at(0.25, 0.75), at(0.75, 0.75))  # obstacles of environment and task
    assert at(0.25, 0.75).max() < 200
    assert at(0.5, 0.25).max() < 60  # the particle
    assert at(0.5, 0.4)[2] - at(0.5, 0.4)[0] > 100  # its plan
    assert at(0.5, 0.8).min() > 240
