"""Reports as HTML pages: they say what the files say, need nothing else, and a real browser shows every picture."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import call
from older import unseal_run
from PIL import Image

from ebmtraj.datasets.images import CACHE
from ebmtraj.errors import EbmtrajError
from ebmtraj.report import page
from ebmtraj.report.figures import training_chart
from ebmtraj.report.subject import Subject
from ebmtraj.report.tables import number

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
STEPS = ["training.steps=8", "training.check_every=4", "training.log_every=2", "training.batch=16"]
# What a page tells of itself once it is shown: its pictures, and whatever it asked the network for.
PROBE = """<script>addEventListener('load', () => setTimeout(() => {
  const seen = {
    images: [...document.images].map(i => i.naturalWidth),
    videos: [...document.querySelectorAll('video')].map(v => v.videoWidth),
    charts: [...document.querySelectorAll('svg.chart')].map(s => [s.getBBox().width, s.querySelectorAll('path').length]),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    asked: performance.getEntriesByType('resource').map(r => r.name).filter(n => !n.startsWith('data:')),
  };
  document.body.innerHTML = '<pre id="seen">' + JSON.stringify(seen) + '</pre>';
}, 1500));</script></body>"""


class _Tags(HTMLParser):
    """Every tag of a page with its attributes; void ones apart, all others must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(path: Path) -> tuple[str, list[tuple[str, dict[str, str | None]]]]:
    """Text and tags of a page that needs nothing else."""
    text = path.read_text(encoding="utf-8")
    parser = _Tags()
    parser.feed(text)
    assert parser.open == []
    assert not any(tag in ("script", "link", "iframe") for tag, _ in parser.found)
    for tag, attributes in parser.found:
        for name in ("src", "href", "xlink:href", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert not re.search(r"url\((?!#|data:)|@import", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "two charts share the name of a clip or a letter"
    return text, parser.found


@pytest.fixture(scope="module")
def runs(hand_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind, trained in moments."""
    from ebmtraj.generators.fit import load_generator_recipe, train_generator
    from ebmtraj.generators.tilt_fit import tilt_recipe, train_tilt
    from ebmtraj.images.fit import load_image_recipe, train_image
    from ebmtraj.trajectories.fit import load_recipe, train_transition
    from ebmtraj.trajectories.plan_fit import load_plan_recipe, train_plan

    folder, data = tmp_path_factory.mktemp("runs"), {"data": str(hand_store)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(folder / "images"))
        for name in ("dsm", "gaussian"):
            train_transition(load_recipe(None, STEPS, {"model": name, **data}), folder / name)
        small = [*STEPS, "network.width=8", "network.horizons=[2,8]"]
        train_plan(load_plan_recipe(None, small, data), folder / "plan")
        train_image(load_image_recipe(None, [*STEPS, "network.channels=4"], {"model": "jem"}), folder / "jem")
        train_generator(load_generator_recipe(None, STEPS, {"data": "25-gaussians"}), folder / "points")
        train_tilt(tilt_recipe(folder / "points", ["training.steps=4", "network.pool=200"]), folder / "points" / "tilt")
    return folder


def made(capfd: pytest.CaptureFixture[str], *words: object) -> dict:
    code, out, err = call(capfd, "report", *words, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert Path(facts["out"]).exists()
    return facts


def pictures(tags: list[tuple[str, dict[str, str | None]]]) -> int:
    return sum(tag in ("img", "video") for tag, _ in tags)


def test_transition_models_side_by_side(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    facts = made(capfd, runs / "dsm", runs / "gaussian", "--out", tmp_path / "two.html")
    text, tags = read(tmp_path / "two.html")
    assert [one["kind"] for one in facts["runs"]] == ["transition", "transition"]
    for one in facts["runs"]:
        assert "trained for 8 steps" in one["summary"]
        assert number(abs(one["validation"])) in text
    for word in ("Fréchet distance over time", "energy score", "training.learning_rate", "To make it again"):
        assert word in text
    assert "ebmtraj train transition --recipe" in text
    assert sum(tag == "svg" for tag, _ in tags) == 3  # distances, and a training each
    assert pictures(tags) == 2 or "Nothing to show here" in text  # a strip and a film, where there is OpenGL
    assert not (runs / "dsm" / "results.json").exists()  # runs are only read


def test_what_evaluate_measured_is_told_and_not_measured_again(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "dsm"
    shutil.copytree(runs / "dsm", run)
    curve = [0.0, 0.123, 0.5]
    kept = {"frechet": 0.311, "floor": 0.2, "frechet_over_time": curve, "floor_over_time": curve, "starts": 1234, "steps": 2}
    kept |= {"samples": 2, "split": "test", "seed": 0, "actions": False}
    (run / "results.json").write_text(json.dumps(kept))
    story = Subject.read(run).story()
    assert "1,234 held-out episodes of 2 steps" in story
    assert "0.311, 1.6 times that of truth against truth (0.200)" in story


@pytest.mark.parametrize(
    ("name", "kind", "word", "least"),
    [
        ("jem", "image", "of 180 validation images told right", 2),
        ("points", "generator", "Points over the true density", 1),
        pytest.param("plan", "plan", "Plans for", 1, marks=pytest.mark.slow),
        pytest.param("points/tilt", "tilt", "before-after", 2, marks=pytest.mark.slow),
    ],
)
def test_each_kind(
    name: str, kind: str, word: str, least: int, runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    facts = made(capfd, runs / name, "--out", tmp_path / "page.html")
    text, tags = read(tmp_path / "page.html")
    assert facts["runs"][0]["kind"] == kind
    if "Nothing to show here" not in text or name != "plan":  # which needs OpenGL
        assert word in text
        assert pictures(tags) >= least
    assert "optimiser steps" in text
    assert f"ebmtraj {'tilt' if kind == 'tilt' else 'train'}" in text


def test_without_pictures(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made(capfd, runs / "plan", "--no-pictures", "--out", tmp_path / "plan.html")
    text, tags = read(tmp_path / "plan.html")
    assert pictures(tags) == 0
    assert "Training" in text


def test_unfinished_runs_say_how_to_go_on(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "killed"
    shutil.copytree(runs / "dsm", run)
    event = {"stage": "base", "step": 4, "event": "rolled back", "why": "<b>loss</b>", "rate": 0.5}
    unseal_run(run)  # so that a line can be added by hand
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(event) + "\n")
    (run / "checkpoints" / "best.safetensors").unlink()
    facts = made(capfd, run)
    text, _ = read(run / "report.html")
    assert facts["runs"][0]["finished"] is False
    assert f"--run {run} --resume" in text
    assert "rolled back (&lt;b&gt;loss&lt;/b&gt;), rate 0.500" in text
    for kind in ("plan", "jem", "points", "points/tilt"):  # told by the recipe alone
        other = tmp_path / kind.replace("/", "-")
        shutil.copytree(runs / kind, other)
        finished = Subject.read(other).kind
        (other / "checkpoints" / "best.safetensors").unlink()
        assert Subject.read(other).kind == finished


def test_results_and_stores(hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, figure in (
        ("transitions", "0.652"),
        ("continual", "98.1"),
        ("continual_search", "kept"),
        ("continual_robot", "mixture of energies"),
        ("plans", "rotate"),
        ("images", "energy, score matching"),
        ("jem", "paper"),
        ("tilting", "VAE, 25 Gaussians"),
        ("composition", "paper"),
    ):
        made(capfd, RESULTS / f"{name}.json", "--out", tmp_path / f"{name}.html")
        text, tags = read(tmp_path / f"{name}.html")
        assert figure in text, name
        assert sum(tag == "tr" for tag, _ in tags) > 3, name
        assert "ebmtraj c" in text  # the command
    made(capfd, hand_store, "--out", tmp_path / "card.html")
    assert "Data card" in (tmp_path / "card.html").read_text()


def test_wrong_input_is_one_line(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "odd.json").write_text('{"protocol": {}}')
    comparison = tmp_path / "half"
    comparison.mkdir()
    (comparison / "comparison.json").write_text("{}")
    for words, said in (
        ((runs / "dsm", runs / "jem"), "runs of one kind"),
        ((runs / "dsm", "--out", tmp_path / "there.html"), "--overwrite"),
        ((runs / "dsm", "--out", tmp_path / "page.pdf"), ".html"),
        ((tmp_path / "none",), "does not exist"),
        ((tmp_path,), "no config.toml"),
        ((tmp_path / "odd.json",), "no results that have a report"),
        ((tmp_path / "none.json",), "does not exist"),
        ((comparison,), "no results yet"),
        ((RESULTS / "plans.json", runs / "dsm"), "report of its own"),
    ):
        code, out, err = call(capfd, "report", *words)
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1
        assert said in err
    assert (tmp_path / "there.html").read_text() == "mine"


def test_charts_take_the_colours_of_the_page() -> None:
    rows = [{"stage": "a", "step": i, "loss": 1 / (1 + i), "validation": 1.2 / (1 + i)} for i in range(20)]
    chart = page.chart(training_chart(rows), "training")
    assert chart == page.chart(training_chart(rows), "training")  # the same text each time
    assert "currentColor" in chart
    assert "#222222" not in chart
    assert "var(--c0)" in chart
    assert "<style" not in chart
    with pytest.raises(EbmtrajError, match="no losses"):
        training_chart([])


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH to look at pages with")
def test_a_browser_shows_every_picture(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = Path(made(capfd, runs / "dsm", "--out", tmp_path / "page.html")["out"])
    text, tags = read(path)
    probe = path.with_name("probe.html")
    probe.write_text(text.replace("default-src 'none'", "script-src 'unsafe-inline'").replace("</body>", PROBE))
    seen = json.loads(re.search(r'id="seen">(.*?)</pre>', browse(probe, tmp_path, "--dump-dom"))[1])  # type: ignore[index]
    assert len(seen["images"]) + len(seen["videos"]) == pictures(tags)
    assert all(width > 100 for width in seen["images"] + seen["videos"]), seen
    assert len(seen["charts"]) == sum(tag == "svg" for tag, _ in tags) > 0
    assert all(width > 300 and paths > 20 for width, paths in seen["charts"]), seen
    assert seen["wide"] <= 0, "the page is wider than its window"
    assert seen["asked"] == []
    looks = {}
    for light in ("light", "dark"):
        browse(path, tmp_path, f"--screenshot={tmp_path / f'{light}.png'}", *(["--force-dark-mode"] * (light == "dark")))
        looks[light] = np.asarray(Image.open(tmp_path / f"{light}.png").convert("L"), dtype=float)
    assert looks["light"][:, :20].mean() > 250  # paper
    assert looks["dark"][:, :20].mean() < 60
    assert all(look.std() > 15 for look in looks.values())  # neither is blank


def browse(path: Path, folder: Path, *words: str) -> str:
    """What a browser says that may ask nothing of the network."""
    command = [BROWSER or "", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1000,2400", "--virtual-time-budget=6000", *words]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout
