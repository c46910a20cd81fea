"""An episode as a table and a film, a store as a data card: figures against the truth, pages that need nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image

from ebmtraj.datasets.blocks import EpisodeBlock, StoreRecipe
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.writer import StoreWriter
from ebmtraj.envs.render import Renderer
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.report.card import data_card
from ebmtraj.report.survey import episode_facts, survey

RATES = np.array([0.0, 0.3, -1.0, 0.7, 0.1, 0.2, 2.5, 0.4])  # rad a step about z: one turns further than half round a step
LENGTHS = np.array([12, 9, 30, 1, 40, 40, 12, 40])
AXES = np.tile(np.array([[0.0, 0.0, 1.0]]), (8, 1))


def one_line(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.fixture
def spinning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Episodes that turn about z at known rates, read in several blocks, of an environment that can't be drawn."""
    states, actions = [], []
    for i, (rate, length) in enumerate(zip(RATES, LENGTHS, strict=True)):
        angle = rate * np.arange(length + 1) + 0.4
        sign = -1.0 if i % 2 else 1.0  # q and -q are one rotation
        quaternion = np.stack([np.cos(angle / 2), 0 * angle, 0 * angle, np.sin(angle / 2)], axis=1) * sign
        states.append(np.column_stack([np.linspace(i, i + 1, length + 1), quaternion]))
        actions.append(np.full((length, 2), 0.1 * i))
    recipe = StoreRecipe(
        env="<b>toy</b>",
        control_timestep=0.05,
        state_fields=(Field("height", 1, "position", "m", low=(0.0,), high=(9.0,)), Field("ball", 4, "quaternion")),
        action_fields=(Field("push", 2, unit="N"),),
        policy={"name": "spin", "note": "<script>alert(1)</script>"},
    )
    writer = StoreWriter.create(tmp_path / "spin.zarr", recipe)
    seeds = np.arange(8, dtype=np.uint64)
    writer.append_block(EpisodeBlock(np.concatenate(states), np.concatenate(actions), LENGTHS, seeds, LENGTHS < 40))
    store = writer.finish()
    spans = Store.spans
    monkeypatch.setattr(Store, "spans", lambda self, rows=0: spans(self, 50))
    assert len(list(store.spans())) > 2
    return store


@pytest.fixture(scope="module")
def drawing() -> None:
    try:
        Renderer("hand-cube", 32, 32).close()
    except EbmtrajError as error:
        if "cannot start OpenGL" in str(error):
            pytest.skip(str(error))
        raise


def test_episode_facts(spinning: Store) -> None:
    for i, (rate, length) in enumerate(zip(RATES, LENGTHS, strict=True)):
        facts = episode_facts(spinning, i)
        turn = facts["turning"]["ball"]
        np.testing.assert_allclose(turn["net"], [0, 0, rate * length], atol=2e-4)
        np.testing.assert_allclose([turn["net_angle"], turn["path"]], abs(rate) * length, atol=2e-4)
        assert (facts["steps"], facts["terminated"], facts["seed"]) == (length, length < 40, i)
        assert facts["seconds"] == pytest.approx(0.05 * length)
        height, _, push = facts["fields"]
        assert (height["low"], height["high"], height["unit"]) == (i, i + 1, "m")
        assert push["start"] == pytest.approx([0.1 * i, 0.1 * i])
    with pytest.raises(EbmtrajError, match="no episode 8; it holds 0 to 7"):
        episode_facts(spinning, 8)


def test_survey_is_exact(spinning: Store) -> None:
    found = survey(spinning)
    states, actions = (rows.astype(np.float64) for rows in spinning.read_all())
    for columns, rows in ((found.state, states), (found.action, actions)):
        np.testing.assert_allclose(columns.mean, rows.mean(0), atol=1e-12)
        np.testing.assert_allclose(columns.std, rows.std(0), atol=1e-9)
        np.testing.assert_array_equal(columns.low, rows.min(0))
        np.testing.assert_array_equal(columns.high, rows.max(0))
        assert (columns.bins.sum(axis=1) == len(rows)).all()
    np.testing.assert_array_equal(found.state.bins[0], np.histogram(states[:, 0], 40)[0])
    np.testing.assert_allclose(found.net["ball"], AXES * (RATES * LENGTHS)[:, None], atol=2e-4)
    np.testing.assert_allclose(found.path["ball"], np.abs(RATES) * LENGTHS, atol=2e-4)


def test_show_by_command(spinning: Store, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, "data", "show", spinning.path, "--episode", "2", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"store": spinning.path, **episode_facts(spinning, 2)}
    code, out, err = call(capfd, "data", "show", spinning.path, "--episode", "2")
    assert (code, out) == (0, "")
    assert "ball turned 30.000 rad net (x +0.000, y +0.000, z -30.000), 30.000 rad of path" in err
    assert "ended by itself" in err
    one_line(call(capfd, "data", "show", spinning.path, "--episode", "99"), "no episode 99")
    one_line(call(capfd, "data", "show", spinning.path, "--video", "a.gif"), "cannot be drawn")
    one_line(call(capfd, "data", "show", spinning.path, "--video", "a.avi"), "a.avi", ".mp4 or .gif")


@pytest.mark.usefixtures("drawing")
def test_films(hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import imageio_ffmpeg

    command = ("data", "show", hand_store, "--episode", "3", "--tile", "90", "--json", "--video")
    gif, mp4 = tmp_path / "new" / "e.gif", tmp_path / "new" / "e.mp4"
    for path in (gif, mp4):
        code, out, err = call(capfd, *command, path)
        assert code == 0, err
        assert json.loads(out)["video"] == str(path)
    with Image.open(gif) as picture:
        assert (picture.n_frames, picture.width) == (11, 90)  # type: ignore[attr-defined]
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(mp4))
    assert (frames, seconds) == (21, pytest.approx(21 * 0.04, abs=0.02))
    decode = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(mp4), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(decode, capture_output=True, check=True).stdout
    shown = np.frombuffer(raw, np.uint8).reshape(21, -1, 90, 3).astype(int)
    assert shown.shape[1] % 2 == 0
    assert shown[0].std() > 20  # there is a hand in it
    assert np.abs(shown[0] - shown[-1]).mean() > 2  # and it moves
    assert sorted(each.name for each in gif.parent.iterdir()) == ["e.gif", "e.mp4"]
    one_line(call(capfd, *command, mp4), "exists", "--overwrite")
    assert call(capfd, *command, mp4, "--overwrite")[0] == 0


def test_mp4_without_the_extra(
    hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    path = tmp_path / "e.mp4"
    one_line(call(capfd, "data", "show", hand_store, "--video", path), "ebmtraj[video]", str(path.with_suffix(".gif")))
    assert not path.exists()


def pictures(page: str) -> list[Image.Image]:
    found = []
    for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            image.load()
            found.append(image.convert("RGB"))
    return found


def needs_nothing_else(page: str) -> None:
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]+)', page))


def test_card_of_a_store_that_can_not_be_drawn(spinning: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "card.html"
    code, text, err = call(capfd, "data", "card", spinning.path, "--out", out, "--json")
    assert code == 0, err
    facts = json.loads(text)
    assert (facts["episodes"], facts["transitions"], facts["terminated"]) == (8, int(LENGTHS.sum()), 5)
    turn = facts["turning_per_100_steps"]["ball"]
    assert turn["net_mean"] == pytest.approx(100 * np.abs(RATES).mean(), abs=0.01)
    assert turn["along_axes"]["z"]["mean"] == pytest.approx(100 * RATES.mean(), abs=0.01)
    assert turn["along_axes"]["x"]["mean"] == pytest.approx(0, abs=0.01)
    page = out.read_text()
    needs_nothing_else(page)
    assert "<b>toy</b>" not in page
    assert "&lt;script&gt;alert" in page
    assert "cannot be drawn" in page
    for word in ("height", "ball", "push", "position", "quaternion", "N", spinning.content_hash or "", "spin", "mujoco"):
        assert word in page
    assert len(pictures(page)) == 5  # rotation, lengths, three fields
    assert all(np.asarray(image).std() > 5 for image in pictures(page))
    one_line(call(capfd, "data", "card", spinning.path, "--out", out), "exists", "--overwrite")
    assert call(capfd, "data", "card", spinning.path, "--out", out, "--overwrite")[0] == 0


@pytest.mark.usefixtures("drawing")
def test_card_of_the_hand(hand_store: Path, tmp_path: Path) -> None:
    data_card(str(hand_store), tmp_path / "card.html")
    page = (tmp_path / "card.html").read_text()
    needs_nothing_else(page)
    for word in (
        "joint_angles",
        "cube_position",
        "WRJ1",
        "rad",
        "model_hash",
        "the furthest turning",
        "random",
        "quaternion of a cube",
    ):
        assert word in page
    assert "Coupled in joint_angles: T_FFJ1c = +1 FFJ0 -1.142 FFJ1; T_MFJ1c" in page
    strips = [image for image in pictures(page) if image.width > 1200]
    assert len(strips) >= 2
    assert len(page) < 3_000_000


def test_card_of_an_empty_store(tmp_path: Path, spinning: Store, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = StoreRecipe("toy", 0.1, (Field("x", 1),), (Field("u", 1),), {"name": "none"})
    StoreWriter.create(tmp_path / "empty.zarr", recipe)
    one_line(call(capfd, "data", "card", tmp_path / "empty.zarr", "--out", tmp_path / "c.html"), "no episodes")
    one_line(call(capfd, "data", "card", tmp_path / "no.zarr", "--out", tmp_path / "c.html"), "does not exist")
