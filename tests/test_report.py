"""Pictures are valid, not empty and in the house style; tables hold the numbers that they were given."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ebmtraj.errors import EbmtrajError
from ebmtraj.report import video
from ebmtraj.report.figures import _running_mean, frechet_figure, kept_rows, training_figure
from ebmtraj.report.style import GREY, LOOKS, look, ordered
from ebmtraj.report.tables import evaluation_table, markdown_table, metrics_by_model, number, rich_table

STEPS = 40
FRECHET = {
    "unconditional": {"fc": 27.4123, "ebm": 0.5841, "gaussian": 1.02, "floor": 0.575},
    "action_conditional": {"ebm": 0.107, "gaussian": 0.0902, "fc": 2.413, "floor": 0.031},
}


def curves() -> dict[str, dict[str, np.ndarray]]:
    t = np.arange(STEPS + 1)
    return {panel: {model: value * (1 - np.exp(-t / 5.0)) for model, value in row.items()} for panel, row in FRECHET.items()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB"), dtype=int)


def count(image: np.ndarray, color: str) -> int:
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(image - wanted).max(-1) <= 2).sum())


def has_color(image: np.ndarray, color: str) -> bool:
    return count(image, color) > 50


# --- Figures ------------------------------------------------------------------------------------------------------


def test_frechet_figure_draws_every_model_in_its_colour(tmp_path: Path) -> None:
    path = frechet_figure(curves(), tmp_path / "deep" / "frechet.png", control_timestep=0.04)
    image = pixels(path)
    assert image.shape[1] == 1800
    for model in ("ebm", "gaussian", "fc"):
        assert has_color(image, LOOKS[model].color), model
    assert [each.name for each in path.parent.iterdir()] == ["frechet.png"]  # nothing temporary is left


def test_each_model_and_panel_changes_the_picture(tmp_path: Path) -> None:
    everything = curves()
    whole = pixels(frechet_figure(everything, tmp_path / "a.png"))
    for model in ("ebm", "gaussian", "fc", "floor"):
        fewer = {panel: {m: v for m, v in lines.items() if m != model} for panel, lines in everything.items()}
        image = pixels(frechet_figure(fewer, tmp_path / "b.png"))
        color = LOOKS[model].color  # the edges of letters hold some grey of their own
        assert count(whole, color) > 500 + 2 * count(image, color), model
    del everything["action_conditional"]
    assert not np.array_equal(pixels(frechet_figure(everything, tmp_path / "c.png")), whole)


def test_figures_have_the_same_bytes_each_time_and_survive_odd_values(tmp_path: Path) -> None:
    odd = curves()
    odd["unconditional"]["fc"][10:] = np.nan  # a gap, no crash
    odd["unconditional"]["my model"] = np.zeros(STEPS + 1)
    one, two = frechet_figure(odd, tmp_path / "1.png"), frechet_figure(odd, tmp_path / "2.png")
    assert one.read_bytes() == two.read_bytes()


def test_a_figure_without_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EbmtrajError, match="no curves"):
        frechet_figure({"unconditional": {}}, tmp_path / "x.png")
    with pytest.raises(EbmtrajError, match="no losses"):
        training_figure([{"step": 1, "learning_rate": 0.1}], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def training_rows() -> list[dict]:
    generator = np.random.default_rng(0)
    rows: list[dict] = []
    for step in range(0, 2000, 20):
        row = {"stage": "base" if step < 800 else "energy", "step": step, "loss": 2 * np.exp(-step / 400)}
        row["loss"] += 0.1 * generator.normal()
        if step % 200 == 0:
            row["validation"] = 2.1 * np.exp(-step / 400)
        rows.append(row)
    return rows


def test_training_figure_shows_loss_validation_and_roll_backs(tmp_path: Path) -> None:
    rows = training_rows()
    image = pixels(training_figure(rows, tmp_path / "a.png"))
    assert has_color(image, LOOKS["ebm"].color)
    assert has_color(image, LOOKS["fc"].color)
    no_validation = [{k: v for k, v in row.items() if k != "validation"} for row in rows]
    assert not has_color(pixels(training_figure(no_validation, tmp_path / "b.png")), LOOKS["fc"].color)
    rolled = [*rows, {"stage": "energy", "step": 1980, "event": "rolled back", "why": "the gap", "rate": 1e-4}]
    changed = pixels(training_figure(rolled, tmp_path / "c.png"))
    assert count(changed, GREY) > count(image, GREY) + 500  # its upright line
    training_figure([{"step": 3, "loss": 1.0}], tmp_path / "one.png")  # a single row, no stage
    training_figure([{"step": s, "loss": float("nan")} for s in range(3)] + rows, tmp_path / "nan.png")


def test_rows_that_a_roll_back_undid_are_left_out() -> None:
    rows = [{"step": s} for s in (10, 20, 30, 40)]
    event = {"step": 20, "event": "rolled back"}
    assert kept_rows([*rows, event, {"step": 25}]) == [{"step": 10}, {"step": 20}, event, {"step": 25}]


def test_running_mean_keeps_a_line_and_averages_noise() -> None:
    np.testing.assert_allclose(_running_mean(np.full(100, 3.0)), 3.0)
    values = np.random.default_rng(0).normal(size=400)
    smooth = _running_mean(values)
    assert smooth[200] == pytest.approx(values[190:211].mean())
    assert smooth[0] == pytest.approx(values[:11].mean())


def test_looks_are_fixed_and_told_apart() -> None:
    assert look("ebm") == look("ebm", ["fc", "mine"])
    assert len({LOOKS[model].color for model in ("ebm", "gaussian", "fc", "floor", "truth")}) == 5
    assert look("mine", ["mine", "yours"]).color != look("yours", ["mine", "yours"]).color
    assert ordered(["floor", "mine", "fc", "ebm"]) == ["ebm", "fc", "mine", "floor"]


def test_no_global_state_and_no_window_system() -> None:
    code = (
        "import sys; import ebmtraj.report.figures, ebmtraj.report.tables, ebmtraj.report.video; "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Tables -------------------------------------------------------------------------------------------------------


def test_markdown_table_holds_the_input() -> None:
    table = markdown_table(FRECHET, "Fréchet distance")
    assert table == (
        "| Fréchet distance | EBM | Gaussian | FC | floor | FC / EBM |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| unconditional | **0.584** | 1.02 | 27.4 | 0.575 | 46.9x |\n"
        "| action-conditional | 0.107 | **0.0902** | 2.41 | 0.0310 | 22.6x |\n"
    )
    for line, row in zip(table.splitlines()[2:], FRECHET.values(), strict=True):
        cells = [cell.strip(" *") for cell in line.split("|")[2:6]]
        for cell, model in zip(cells, ("ebm", "gaussian", "fc", "floor"), strict=True):
            assert float(cell) == pytest.approx(row[model], rel=5e-3)


def test_table_with_gaps_and_other_directions() -> None:
    values = {"drops": {"a": 0.1, "b": 0.2}, "success": {"a": 0.9, "b": None}, "reward": {"a": 3.0, "b": 8.0}}
    table = markdown_table(values, ratio=None, higher_is_better=("reward",), columns=("b", "a"))
    assert table.splitlines()[0] == "|  | b | a |"
    assert "| drops | 0.200 | **0.100** |" in table
    assert "| success | - | 0.900 |" in table  # nothing to be better than
    assert "| reward | **8.00** | 3.00 |" in table
    assert markdown_table({"x": {"ebm": 0.0, "fc": 1.0}}).splitlines()[2].endswith("| - |")  # no ratio to zero


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.58412, "0.584"),
        (27.44, "27.4"),
        (1350.4, "1350"),
        (999.9, "1000"),
        (0.9999, "1.00"),
        (0.0001234, "0.000123"),
        (1e-7, "1e-07"),
        (-3.14159, "-3.14"),
        (0, "0"),
        (None, "-"),
        (float("nan"), "-"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def printed(table: object) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard")
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rich_table_shows_the_same_numbers_and_marks_the_best() -> None:
    text = printed(rich_table(FRECHET, "Fréchet distance"))
    for cell in ("0.584", "1.02", "27.4", "0.575", "46.9x", "0.0902", "action-conditional"):
        assert cell in text
    assert "\x1b[1;32m0.584" in text.replace("\x1b[1;32m ", "\x1b[1;32m").replace(" ", "")
    assert "\x1b[1;32m0.575" not in text.replace(" ", "")


def test_evaluation_table_sets_the_model_beside_the_truth() -> None:
    result = {"frechet": 0.75, "floor": 0.5, "turning": {"model": 1.25, "truth": 2.5}, "energy_score": None}
    text = printed(evaluation_table(result, "hand"))
    for cell in ("0.750", "0.500", "1.25", "2.50", "rad"):
        assert cell in text
    assert "energy score" not in text
    rows = metrics_by_model({"ebm": result, "fc": {"frechet": 9.0}}, ["frechet", "floor"])
    assert rows == {"frechet": {"ebm": 0.75, "fc": 9.0}, "floor": {"ebm": 0.5, "fc": None}}


# --- Video --------------------------------------------------------------------------------------------------------

LABELS = ("truth", "ebm", "gaussian", "fc")


class FakePicturer:
    """Draws a state as a plain picture of its first number, so that layout can be tested where OpenGL is missing."""

    def __init__(self, env_id: str, env_kwargs: dict, size: tuple[int, int], **_: object) -> None:
        self.shape = (*size[::-1], 3)

    def frame(self, state: np.ndarray) -> np.ndarray:
        return np.full(self.shape, int(state[0]), np.uint8)

    def __enter__(self) -> FakePicturer:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def plain_rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    monkeypatch.setattr(video, "make_picturer", FakePicturer)
    rows = {label: np.zeros((STEPS + 1, 3)) for label in LABELS}
    for place, states in enumerate(rows.values()):
        states[:, 0] = 40 * place + np.arange(STEPS + 1)
    return rows


def test_strip_shows_each_moment_of_each_rollout(plain_rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = video.strip(plain_rows, "hand-cube", tmp_path / "strip.png", frames=(0, 10, 25, 1000), tile=64)
    image = pixels(path)
    grey = (image[..., 0] == image[..., 1]) & (image[..., 1] == image[..., 2])
    for place in range(4):
        for step in (0, 10, 25, STEPS):  # 1000 is past the end: the last state
            assert ((image[..., 0] == 40 * place + step) & grey).sum() >= 64 * 64
    assert has_color(image, LOOKS["ebm"].color)  # its label
    no_more = video.strip(plain_rows, "hand-cube", tmp_path / "two.png", frames=(0, 10), tile=64)
    assert pixels(no_more).shape[1] < image.shape[1]


def test_gif_has_a_frame_for_every_step_shown(plain_rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    plain_rows["fc"] = plain_rows["fc"][:31]  # cut to the shortest
    path = tmp_path / "rollouts.gif"
    video.gif(plain_rows, "hand-cube", path, frame_every=2, tile=64)
    with Image.open(path) as image:
        assert image.format == "GIF"
        assert image.n_frames == 16
        assert image.info["loop"] == 0
        assert image.info["duration"] == 80  # ms: as fast as the robot, 25 steps a second, every other shown
        shown = []
        for moment in range(16):
            image.seek(moment)
            shown.append(np.asarray(image.convert("L"), dtype=int))
        assert image.info["duration"] == video.END_PAUSE
    centre = shown[0].shape[0] // 2
    for place in range(4):  # each rollout in its own column, moving in time
        column = [page[centre, place * 65 + 32] for page in shown]
        assert column[0] == pytest.approx(40 * place, abs=6)
        assert column[-1] == pytest.approx(40 * place + 30, abs=6)


def test_gif_shrinks_until_it_fits() -> None:
    generator = np.random.default_rng(0)
    pages = [Image.fromarray(generator.integers(0, 255, (120, 200, 3), dtype=np.uint8)) for _ in range(6)]
    large = video.encode_gif(pages, 40)
    small = video.encode_gif(pages, 40, limit=len(large) // 2)
    assert len(small) < len(large) // 2
    with Image.open(io.BytesIO(small)) as image:
        assert image.n_frames == 6
        assert image.size[0] < 200


def test_video_refuses_what_it_cannot_show(plain_rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(EbmtrajError, match="no rollouts"):
        video.strip({}, "hand-cube", path)
    with pytest.raises(EbmtrajError, match=r"'ebm' has shape \(3,\)"):
        video.gif({"ebm": np.zeros(3)}, "hand-cube", path)
    with pytest.raises(EbmtrajError, match="frame_every"):
        video.gif(plain_rows, "hand-cube", path, frame_every=0)
    with pytest.raises(EbmtrajError, match="step numbers"):
        video.strip(plain_rows, "hand-cube", path, frames=(-1,))
    assert not path.exists()


def test_an_environment_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    with pytest.raises(EbmtrajError, match="Reacher-v5"):
        video.strip({"truth": np.zeros((3, 11))}, "Reacher-v5", tmp_path / "x.png")


def test_real_frames_of_the_hand(tmp_path: Path) -> None:
    states = np.zeros((9, 31))
    states[:, 24:27] = (1.0, 0.88, 0.17)
    half = np.linspace(0, 0.7, 9)
    states[:, 27], states[:, 30] = np.cos(half), np.sin(half)
    rows = {"truth": states, "ebm": states[::-1]}
    try:
        path = video.gif(rows, "hand-cube", tmp_path / "hand.gif", frame_every=1, tile=96)
    except EbmtrajError as error:
        if "cannot start OpenGL" in str(error):
            pytest.skip(str(error))
        raise
    with Image.open(path) as image:
        assert image.n_frames == 9
        first = np.asarray(image.convert("RGB"), dtype=int)
        image.seek(8)
        last = np.asarray(image.convert("RGB"), dtype=int)
    head = (len(first) - 96) // 2 + 12
    left, right = first[head : head + 60, :96], last[head : head + 60, 98:194]
    assert left.std() > 20  # a picture, no plain colour
    assert (np.abs(left - first[head : head + 60, 98:194]).max(-1) > 40).mean() > 0.005  # the rollouts differ
    assert (np.abs(left - right).max(-1) > 40).mean() < 0.02  # and one runs the other backward
    strip = pixels(video.strip(rows, "hand-cube", tmp_path / "hand.png", frames=(0, 4, 8), tile=96))
    assert strip.std() > 20
    states[3, 0] = np.nan
    with pytest.raises(EbmtrajError, match="NaN"):
        video.strip({"ebm": states}, "hand-cube", tmp_path / "nan.png", frames=(3,), tile=32)
