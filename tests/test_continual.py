"""Continual learning: the protocol, one contract of all learners, measures, the commands and what they refuse."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from rich.console import Console
from threadpoolctl import threadpool_limits
from torch import Tensor

from ebmtraj.continual.gaussians import ClassGaussian, TiltedGaussian
from ebmtraj.continual.grids import GRIDS, choices
from ebmtraj.continual.learner import ClassScores
from ebmtraj.continual.masked import MaskedEBM, MaskedNet
from ebmtraj.continual.measures import average_accuracy, energy_offsets, forgetting, forward_transfer
from ebmtraj.continual.registry import LEARNERS, make_learner, settings_of
from ebmtraj.continual.run import take_course
from ebmtraj.continual.softmax import fisher
from ebmtraj.continual.tasks import SCENARIOS, Problem, Scenario, Split, Stream, Task, even_plan, make_stream, parse_plan
from ebmtraj.datasets.image_writer import RawImages, write_images
from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.datasets.shapes import shapes
from ebmtraj.errors import EbmtrajError
from ebmtraj.nets.mlp import MLP
from ebmtraj.report.continual_behaviours import LEARNERS as BEHAVIOURS
from ebmtraj.report.continual_robot import score_forgetting
from ebmtraj.report.continual_table import rich_continual

SIZE, PLAN = 6, ((0, 1), (2, 3), (4,))
QUICK = {"steps": 6, "batch": 8}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return open_images("digits", tmp_path_factory.mktemp("images"))


def blobs(count: int, seed: int) -> Split:
    """Five well separated classes in [0, 1]^6."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 5
    x = 0.3 + 0.05 * torch.randn(count, SIZE, generator=generator)
    x[torch.arange(count), y] += 0.5
    return Split(x.clamp(0, 1), y)


def stream() -> Stream:
    def of(part: Split, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        assert part.y is not None
        rows = torch.isin(part.y, torch.tensor(classes))
        return part.x[rows], part.y[rows]

    train, test = blobs(100, 0), blobs(50, 1)
    tasks = tuple(Task(k, plan, *of(train, plan)) for k, plan in enumerate(PLAN))
    return Stream(PLAN, tasks, tuple(Split(*of(test, plan)) for plan in PLAN))


def quick(name: str) -> dict[str, Any]:
    known = vars(settings_of(name))
    return {key: value for key, value in QUICK.items() if key in known}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", list(LEARNERS))
def test_contract_of_every_learner(name: str, scenario: Scenario) -> None:
    one, given = stream(), quick(name)
    problem = one.problem(scenario)
    learner, twin = (make_learner(name, problem, 3, given) for _ in range(2))
    x = torch.cat([test.x for test in one.tests])
    with pytest.raises(EbmtrajError, match="seen no task yet"):
        learner.predict(x, 0)
    for task in one.tasks:
        with pytest.raises(EbmtrajError, match="out of turn"):
            learner.observe(dataclasses.replace(task, number=task.number + 1))
        with pytest.raises(EbmtrajError, match=r"learner .* needs labels"):
            learner.observe(dataclasses.replace(task, y=None))
        learner.observe(task)
        twin.observe(task)
        place = task.number
        answers = learner.predict(x, place)
        assert answers.shape == (len(x),)
        assert torch.equal(answers, twin.predict(x, place)), "the same seed must give the same answers"
        assert torch.equal(answers, learner.predict(x, place)), "predicting must change nothing"
        assert torch.equal(answers[:7], learner.predict(x[:7], place)), "an image's answer must not hang on the others"
        if scenario == "class":
            assert set(answers.tolist()) <= set(learner.seen)
        if scenario == "task":
            assert set(answers.tolist()) <= set(task.classes)
            with pytest.raises(EbmtrajError, match="must be told"):
                learner.predict(x)
        if scenario == "domain":
            assert set(answers.tolist()) <= {0, 1}
    with pytest.raises(EbmtrajError, match="has seen all 3 tasks"):
        learner.observe(one.tasks[0])
    assert learner.memory() > 0
    assert bool(getattr(learner, "images", torch.zeros(0)).numel()) == learner.replay
    if isinstance(learner, ClassScores):
        assert learner.energies(x).shape == (len(x), 5)


@pytest.mark.parametrize(
    "name", ["ebm", "ebm-shift", "nearest-mean", "class-gaussian", "tilt", "separate", "joint", "replay"]
)
def test_classes_far_apart_are_told_apart(name: str) -> None:
    changes = {"steps": 150} if "steps" in vars(settings_of(name)) else {}
    course = take_course(stream(), name, ["class"], 0, changes)[0]
    assert average_accuracy(course.matrix, course.images) > 0.95


def test_fine_tuning_forgets_and_says_so(digits: ImageStore) -> None:
    course = take_course(make_stream(digits, even_plan(10)), "fine-tune", ["class"], 0, {"steps": 60})[0]
    assert course.matrix[-1, :4].max() < 0.1 < 0.9 < course.matrix[-1, 4]
    assert forgetting(course.matrix) > 0.9


def test_scenarios_of_one_training_are_those_of_three() -> None:
    together = take_course(stream(), "ebm", SCENARIOS, 5, quick("ebm"))
    alone = [take_course(stream(), "ebm", [each], 5, quick("ebm"))[0] for each in SCENARIOS]
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(a.matrix, b.matrix)


def test_held_weights_keep_energies_of_old_classes_to_the_bit() -> None:
    one = stream()
    kept = {}
    for hold in (True, False):
        learner = make_learner("ebm", one.problem("class"), 0, {"hold": hold, "steps": 20, "keep": 0.3})
        assert isinstance(learner, ClassScores)
        learner.observe(one.tasks[0])
        before = learner.energies(one.tests[0].x)[:, :2]
        for task in one.tasks[1:]:
            learner.observe(task)
        kept[hold] = torch.equal(before, learner.energies(one.tests[0].x)[:, :2])
    assert kept == {True: True, False: False}


def test_a_class_by_its_own_units_is_the_masked_network() -> None:
    net = MaskedNet(SIZE, 3, 5, 0.2, torch.Generator().manual_seed(0))
    x = torch.rand(9, SIZE, generator=torch.Generator().manual_seed(1))
    for label in range(5):
        whole = net(x, torch.full((9,), label))
        torch.testing.assert_close(net.of_class(x, label), whole)
    assert torch.equal(net.mask1.sum(1), torch.full((5,), 80.0))
    part, label = net.part([1, 4], [0]), torch.tensor([1, 4, 1, 4, 4, 1, 1, 4, 4])
    torch.testing.assert_close(part(x, label), net(x, label))
    before = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        for p, free in zip(part.weights, part.free, strict=True):
            p += free
    part.put_back(net)
    torch.testing.assert_close(part(x, label), net(x, label))
    for p, old, free in zip(net.parameters(), before, net.free([0]), strict=True):
        moved = (p.detach() - old) != 0
        assert bool(moved.any())
        assert not bool((moved & (free.expand_as(p) == 0)).any())
    taken = dict(zip([name for name, _ in net.named_parameters()], net.free([0, 1]), strict=True))
    a, b = net.mask1[:2].bool(), net.mask2[:2].bool()
    assert taken["middle.weight"].bool().logical_not().equal((b[0, :, None] & a[0]) | (b[1, :, None] & a[1]))
    assert all(bool((each == 1).all()) for each in net.free([]))


def test_a_trained_masked_energy_is_half_the_squared_score_times_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = 0.4 + 0.05 * torch.randn(3000, 4, generator=generator), torch.zeros(3000, dtype=torch.int64)
    learner = MaskedEBM(Problem(4, ((0,), (1,))), settings_of("ebm", {"steps": 600, "noise": 1.0}), 0)
    learner.observe(Task(0, (0,), x, y))
    unit = torch.randn(200, 4, generator=generator)
    found = learner.energies(learner.shift + learner.scale * unit)[:, 0]
    # images of spread 1 about 0 under noise of spread 1 have the score -x / 2, so that E = |x / 2|^2 / 2
    truth = 0.125 * unit.square().sum(1)
    assert float((found - truth).abs().mean() / truth.mean()) < 0.15


def test_gaussian_energy_is_minus_log_density() -> None:
    from scipy.stats import multivariate_normal

    one = stream()
    learner = ClassGaussian(one.problem("class"))
    for task in one.tasks:
        learner.observe(task)
    x = one.tests[1].x
    own = learner.unit(torch.cat([task.x[task.y == 2] for task in one.tasks if task.y is not None])).double().numpy()
    covariance = np.cov(own.T, bias=True) + learner.config.ridge * np.eye(SIZE)
    truth = -multivariate_normal(own.mean(0), covariance).logpdf(learner.unit(x).numpy())
    assert np.allclose(learner.energies(x)[:, 2].numpy(), truth, rtol=1e-3, atol=1e-2)


def test_a_tilt_of_two_bumps_finds_what_the_gaussian_misses() -> None:
    # two narrow bumps in one pixel: log p - log N is far above 0 on them, and below 0 half-way
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.02 * torch.randn(400, 4, generator=generator)
    x[:, 0] += torch.where(torch.rand(400, generator=generator) < 0.5, 0.25, -0.25)
    problem = Problem(4, ((0,), (1,)))
    config = settings_of("tilt", {"steps": 1000, "ridge": 0.003, "low": 0.1})
    tilted, plain = (
        TiltedGaussian(problem, config, 0),
        ClassGaussian(problem, settings_of("class-gaussian", {"ridge": 0.003})),
    )
    for learner in (tilted, plain):
        learner.observe(Task(0, (0,), x, torch.zeros(400, dtype=torch.int64)))
    probe = torch.full((2, 4), 0.5)
    probe[0, 0] += 0.25
    gain = (plain.energies(probe) - tilted.energies(probe))[:, 0]
    assert float(gain[0]) > 0.5
    assert float(gain[1]) < -0.5
    assert 0.5 < float(tilted.trust[0]) <= 1.0


def test_fisher_is_the_mean_squared_gradient_of_each_image() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(SIZE, 3, width=7, depth=2)
    x = torch.rand(20, SIZE, generator=torch.Generator().manual_seed(1))
    found = fisher(net, x, [0, 2], torch.Generator().manual_seed(2))
    log_p = net(x)[:, [0, 2]].log_softmax(1)
    drawn = torch.multinomial(log_p.detach().exp(), 1, generator=torch.Generator().manual_seed(2))
    truth = [torch.zeros_like(p) for p in net.parameters()]
    for i in range(20):
        slopes = torch.autograd.grad(log_p[i, drawn[i, 0]], list(net.parameters()), retain_graph=True)
        for total, slope in zip(truth, slopes, strict=True):
            total += slope.square() / 20
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b)


def test_measures_by_hand() -> None:
    matrix = [[1.0, 0.2, 0.0], [0.6, 0.9, 0.4], [0.5, 0.7, 0.8]]
    assert average_accuracy(matrix, [1, 1, 2]) == pytest.approx((0.5 + 0.7 + 2 * 0.8) / 4)
    assert forgetting(matrix) == pytest.approx(((1.0 - 0.5) + (0.9 - 0.7)) / 2)
    assert forward_transfer(matrix, [0.1, 0.1, 0.1]) == pytest.approx(((0.2 - 0.1) + (0.4 - 0.1)) / 2)
    assert forgetting([[0.7]]) == 0.0
    assert forward_transfer([[0.7]], [0.5]) is None
    found = energy_offsets([[1.0, 3.0], [5.0, 2.0]], [0, 1])
    assert found["own_spread"] == pytest.approx(0.5)
    assert found["margin"] == pytest.approx((2.0 + 3.0) / 2)
    with pytest.raises(ValueError, match="matrix"):
        forgetting([[1.0, 2.0]])


def test_forgetting_of_scores_is_how_much_worse_they_end() -> None:
    matrix = np.array([[1.0, 9.0, 9.0], [0.8, 2.0, 9.0], [3.0, 2.5, 1.0]])
    assert score_forgetting(matrix) == pytest.approx(((3.0 - 0.8) + (2.5 - 2.0)) / 2)
    matrix[1, 0] = np.nan
    assert score_forgetting(matrix) is None


def test_answers_of_a_scenario() -> None:
    problem = Problem(SIZE, ((3, 0), (1, 2), (4,)), "domain")
    assert problem.answer_of().tolist() == [1, 0, 1, 0, 0]
    assert problem.answers == 2
    assert Problem(SIZE, PLAN, "task").answers == 5


def test_digits_come_as_tasks(digits: ImageStore) -> None:
    made = make_stream(digits, even_plan(10), "test")
    assert [len(task.x) for task in made.tasks] == [int(((digits.read("train").labels // 2) == k).sum()) for k in range(5)]
    assert sum(len(test.x) for test in made.tests) == 360
    assert made.spare is not None
    assert make_stream(digits, even_plan(10), "validation").spare is None
    seen = torch.cat([task.y for task in made.tasks if task.y is not None])
    assert seen.unique().tolist() == list(range(10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1|1,2", "class 1 is in task 0 and in task 1"),
        ("0,1|2", "class 3 is in no task"),
        ("0,1,2,3|", "task 1 has no classes"),
        ("0,1|2,9", "asks for class 9"),
        ("0,1|2,four", "unknown class 'four'"),
    ],
)
def test_plans_that_do_not_fit_are_refused(text: str, message: str) -> None:
    with pytest.raises(EbmtrajError, match=message):
        parse_plan(text, ("a", "b", "c", "d"))
    assert parse_plan("d,0|1,c", ("a", "b", "c", "d")) == ((3, 0), (1, 2))
    assert even_plan(3) == ((0, 1), (2,))
    with pytest.raises(EbmtrajError, match="at least two"):
        even_plan(3, 3)


def test_wrong_tasks_are_refused() -> None:
    one = stream()
    task = one.tasks[0]
    learner = make_learner("ebm", one.problem("class"), 0, QUICK)
    for change, message in (
        ({"y": None}, "needs labels, and task 0 has none"),
        ({"y": task.y + 2 if task.y is not None else None}, "labels of classes that are not its own"),
        ({"x": task.x[:, :3]}, r"it needs \(N, 6\)"),
        ({"y": torch.zeros_like(task.y) if task.y is not None else None}, "no image of its class 1"),
        ({"classes": (0, 2)}, "out of turn"),
    ):
        with pytest.raises(EbmtrajError, match=message):
            learner.observe(dataclasses.replace(task, **change))


def test_settings_that_are_wrong_are_named() -> None:
    with pytest.raises(EbmtrajError, match=r"keep = 0\.0"):
        settings_of("ebm", {"keep": 0.0})
    with pytest.raises(EbmtrajError, match="unknown key kept; did you mean keep"):
        settings_of("ebm", {"kept": 1})
    with pytest.raises(EbmtrajError, match="did you mean ewc"):
        make_learner("ewcc", stream().problem("class"))
    for name, grid in GRIDS.items():
        assert name in LEARNERS
        for point in choices(grid):
            settings_of(name, point)
    assert set(GRIDS) == set(LEARNERS)


def test_shapes_are_the_same_each_time_and_where_their_factors_say() -> None:
    a, b = shapes(count=40), shapes(count=40)
    assert np.array_equal(a.pixels, b.pixels)
    assert a.factors is not None
    assert a.labels is not None
    picture = a.pixels[:, 0].astype(float) - a.pixels[:, 0].mean((1, 2), keepdims=True)
    weight = np.where(picture > 40, picture, 0.0)
    across = (weight.sum(1) * (np.arange(28) + 0.5) / 28).sum(1) / weight.sum((1, 2))
    assert np.corrcoef(across[a.labels != 8], a.factors[a.labels != 8, 0])[0, 1] > 0.7
    assert len(set(a.labels.tolist())) == 10


def test_a_trial_is_killed_and_goes_on_to_the_same_table(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "continual",
        "--learners",
        "ebm,ewc,nearest-mean",
        "--seeds",
        2,
        "--first-seed",
        500,
        "--scenario",
        "class,task",
    ]
    words += ["--set", "all.steps=8", "--workers", 1, "--json"]
    whole, part = tmp_path / "whole.json", tmp_path / "part.json"
    code, out, err = call(capfd, *words, "--out", whole, "--pictures", tmp_path / "pictures")
    assert code == 0, err
    found = json.loads(out)
    assert {row["scenario"] for row in found["rows"]} == {"class", "task"}
    for row in found["rows"]:
        assert {"learner", "scenario", "accuracy_mean", "accuracy_std", "forgetting", "seconds", "replay"} <= set(row)
        assert 0 <= row["accuracy_mean"] <= 100
    assert len(found["pictures"]) == 2
    call(capfd, *words, "--out", part)
    done = sorted((tmp_path / "part").rglob("outcome.json"))
    assert len(done) == 2 * (1 + 2) + 1
    for path in done[::2]:  # as a kill leaves it: some are done and some are not
        path.unlink()
    os.unlink(part)
    code, out, err = call(capfd, *words, "--out", part, "--resume")
    assert code == 0, err

    def lasting(results: dict[str, Any]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in results["rows"]]

    assert lasting(json.loads(part.read_text())) == lasting(json.loads(whole.read_text()))
    code, _, err = call(capfd, *words, "--out", part, "--resume", "--set", "ebm.keep=0.3")
    assert code == 2
    assert "keep" in err


def test_a_search_keeps_the_best_point_and_is_used(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    search, table = tmp_path / "search.json", tmp_path / "table.json"
    words = ["--learners", "class-gaussian", "--seeds", 1, "--workers", 1]
    code, _, err = call(capfd, "continual", "--tune", *words, "--out", search)
    assert code == 0, err
    found = json.loads(search.read_text())
    points = [point for point in found["points"] if point["learner"] == "class-gaussian"]
    assert len(points) == len(GRIDS["class-gaussian"]["ridge"])
    best = max(points, key=lambda point: point["accuracy_mean"])
    assert found["kept"]["class-gaussian"]["class"] == best["settings"]
    code, _, err = call(capfd, "continual", *words, "--settings", search, "--out", table)
    assert code == 0, err
    assert json.loads(table.read_text())["settings"]["class-gaussian/class"] == best["settings"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learners", "ebmm"], "did you mean ebm"),
        (["--learners", ","], "--learners names none"),
        (["--scenario", "klass"], "unknown scenario 'klass'"),
        (["--tasks", "0,1|1,2"], "class 1 is in task 0 and in task 1"),
        (["--tasks", "0,1|2,3"], "class 4 is in no task"),
        (["--set", "steps=3"], "say whose setting it is"),
        (["--set", "ebm.stepz=3"], "did you mean steps"),
        (["--split", "train"], "learners are trained on train"),
        (["--data", "nowhere"], "neither a store nor a source"),
        (["--per-task", "10"], "at least two are needed"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capfd, "continual", "--out", tmp_path / "x.json", "--learners", "nearest-mean", *words)
    assert code == 2
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert not (tmp_path / "x.json").exists()


def test_images_without_labels_are_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pixels = np.zeros((12, 1, 4, 4), np.uint8)
    write_images(tmp_path / "plain.zarr", RawImages("plain", pixels, np.arange(12, dtype=np.int8) % 3))
    code, _, err = call(capfd, "continual", "--data", tmp_path / "plain.zarr", "--out", tmp_path / "x.json")
    assert code == 2
    assert "has no labels" in err


def test_behaviours_one_after_the_other(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from ebmtraj.collect import CollectConfig, collect

    paths = []
    for number, axis in enumerate(("+z", "-z")):
        paths.append(tmp_path / f"{axis}.zarr")
        given = {"policy": "trained", "policy_kwargs": {"axis": axis}}
        collect(paths[-1], CollectConfig(episodes=24, steps=34, seed=number, **given))
    words = ["continual-robot", "--stores", ",".join(map(str, paths)), "--seeds", 1, "--steps", 8, "--horizon", 3]
    code, out, err = call(capfd, *words, "--workers", 1, "--out", tmp_path / "a.json", "--json")
    assert code == 0, err
    rows = {row["learner"]: row for row in json.loads(out)["rows"]}
    assert set(rows) == set(BEHAVIOURS)
    assert rows["mixture-told"]["forgetting"] == pytest.approx(0.0, abs=1e-9)  # nothing of the first one's is touched
    assert rows["mixture"]["scenario"] == "domain"
    assert rows["joint"]["replay"]
    again = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a" / "mixture" / "seed-0" / "outcome.json").unlink()
    code, _, err = call(capfd, *words, "--workers", 1, "--out", tmp_path / "a.json", "--resume")
    assert code == 0, err
    matrices = [
        {row["learner"]: row["matrix"] for row in each["rows"]}
        for each in (again, json.loads((tmp_path / "a.json").read_text()))
    ]
    assert matrices[0] == matrices[1]
    code, _, err = call(capfd, "continual-robot", "--stores", f"{paths[0]}", "--out", tmp_path / "b.json")
    assert code == 2
    assert "at least two different stores" in err


def test_tables_fit_into_a_terminal_of_80_characters() -> None:
    results = json.loads((Path(__file__).parents[1] / "docs" / "results" / "continual.json").read_text())
    console = Console(width=80, file=io.StringIO())
    for table in rich_continual(results):
        console.print(table)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for row in results["rows"]:
        assert row["title"].split(",")[0][:20] in said
    assert "kept" in said
