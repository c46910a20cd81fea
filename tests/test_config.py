"""Recipes: what is accepted comes back equal; what is not is named in one line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ebmtraj.config import build, first_difference, from_recipe, merge, parse_overrides, read_toml, to_plain, to_toml
from ebmtraj.errors import EbmtrajError
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.fit import TransitionRecipe, load_recipe
from ebmtraj.trajectories.registry import MODELS


@dataclass(frozen=True)
class Inner:
    width: int = 8
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    rate: float = 0.1
    steps: int = 10
    name: str = "x"
    on: bool = False
    limit: float | None = None
    lengths: tuple[float, ...] | None = None
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    free: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stepps": 3}, ["unknown key stepps", "did you mean steps?"]),
        ({"inner": {"widht": 3}}, ["unknown key inner.widht", "did you mean inner.width?"]),
        ({"maybe": {"zzz": 3}}, ["unknown key maybe.zzz", "known here: width, kind"]),
        ({"steps": True}, ["steps = True", "integer"]),
        ({"steps": 2.5}, ["steps = 2.5", "integer"]),
        ({"steps": "3"}, ["steps = '3'", "integer"]),
        ({"rate": "0.1"}, ["rate = '0.1'", "number"]),
        ({"rate": True}, ["rate = True", "number"]),
        ({"name": 3}, ["name = 3", "string"]),
        ({"on": 1}, ["on = 1", "boolean"]),
        ({"inner": 3}, ["inner = 3"]),
        ({"inner": {"kind": "c"}}, ["inner.kind = 'c'", "'a' or 'b'"]),
        ({"lengths": [1.0, "x"]}, ["lengths", "'x'"]),
        ({"rate": float("nan")}, ["rate = nan", "finite"]),
        ({"free": {"deep": [float("inf")]}}, ["free.deep = inf", "finite"]),
    ],
)
def test_a_fault_is_named_in_one_line(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(EbmtrajError) as caught:
        build(Outer, values, "recipe r.toml")
    text = str(caught.value)
    assert text.startswith("recipe r.toml: ")
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_whole_number_is_a_number() -> None:
    assert build(Outer, {"rate": 1, "lengths": [1, 2.5]}) == Outer(rate=1.0, lengths=(1.0, 2.5))


def test_overrides() -> None:
    pairs = ["rate=0.5", "inner.width = 16", "name=dsm", "on=true", "lengths=[1.0, 2.0]", 'inner.kind="b"', "a.b.c=1e-3"]
    assert parse_overrides(pairs) == {
        "rate": 0.5,
        "inner": {"width": 16, "kind": "b"},
        "name": "dsm",
        "on": True,
        "lengths": [1.0, 2.0],
        "a": {"b": {"c": 1e-3}},
    }
    for bad in ("rate", "=3", "a..b=1", "inner.=2"):
        with pytest.raises(EbmtrajError, match="key=value"):
            parse_overrides([bad])
    with pytest.raises(EbmtrajError, match="already has a value"):
        parse_overrides(["inner=3", "inner.width=3"])


def test_defaults_file_and_overrides_are_laid_on_each_other(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("steps = 20\nname = 'file'\n[inner]\nwidth = 5\n")
    made = from_recipe(Outer, path, ["inner.kind=b", "steps=30"], {"rate": 0.9, "name": "default"})
    assert made == Outer(rate=0.9, steps=30, name="file", inner=Inner(5, "b"))
    path.write_text("stepz = 20\n")
    with pytest.raises(EbmtrajError, match=f"recipe {path}: unknown key stepz"):
        from_recipe(Outer, path, ["steps=3"])
    path.write_text("steps = 20\n")
    with pytest.raises(EbmtrajError, match="--set: steps = 'many'"):
        from_recipe(Outer, path, ["steps=many"])
    path.write_text("steps = [")
    with pytest.raises(EbmtrajError, match="can't be read as TOML"):
        read_toml(path)
    path.write_text("name = 1979-05-27\n")
    with pytest.raises(EbmtrajError):
        from_recipe(Outer, path)
    with pytest.raises(EbmtrajError, match="does not exist"):
        read_toml(tmp_path / "none.toml")


def test_merge_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": 4}
    assert merge(base, over) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert (base, over) == ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": 4})


def test_first_difference() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 4}) == ("a.b", 1, 3)
    assert first_difference({"a": 1}, {}) == ("a", 1, None)


def test_toml_gives_the_dataclass_back(tmp_path: Path) -> None:
    config = Outer(rate=1e-7, lengths=(1.0, 2.0), maybe=Inner(3, "b"), free={"x": [1, {"y": "z"}]}, name='quo"te\n')
    path = tmp_path / "r.toml"
    path.write_text(to_toml(config))
    assert from_recipe(Outer, path) == config


@pytest.mark.parametrize("model", MODELS)
def test_a_whole_transition_recipe_comes_back_from_toml(model: str, tmp_path: Path) -> None:
    changes = ["training.guard.retries=1", "training.seconds=3.5", "actions=true", "network.width=17", "content_hash=ab"]
    recipe = load_recipe(None, changes, {"model": model, "data": "a store.zarr"})
    assert recipe.network["width"] == 17
    path = tmp_path / "config.toml"
    path.write_text(to_toml(recipe))
    assert load_recipe(path, [], {}) == recipe
    direct = from_recipe(TransitionRecipe, path)
    assert to_plain(dataclasses.asdict(direct)) == to_plain(dataclasses.asdict(recipe))


def test_one_setting_of_the_sampler_leaves_the_others() -> None:
    before = load_recipe(None, [], {}).network["sampler"]
    after = load_recipe(None, ["network.sampler.record=true", "network.sampler.ladder.levels=5"], {}).network["sampler"]
    assert after == {**before, "record": True, "ladder": {**before["ladder"], "levels": 5}}
    cd = [load_recipe(None, s, {"model": "cd"}).network["sampler"] for s in ([], ["network.sampler.step_size=0.5"])]
    assert cd[1] == {**cd[0], "step_size": 0.5}


def test_a_model_brings_defaults_of_its_own_which_all_else_overrides(tmp_path: Path) -> None:
    usual = TrainingConfig()
    for model, own in (
        ("dsm", {"learning_rate": 4e-3, "constant": 0.2}),
        ("gru", {"batch": 128, "learning_rate": 2e-3, "constant": 0.2}),
        ("cd", {}),
    ):
        training = load_recipe(None, [], {"model": model}).training
        assert training == dataclasses.replace(usual, **own)
        assert load_recipe(None, [f"model={model}"], {}).training == training
    path = tmp_path / "r.toml"
    path.write_text("[training]\nlearning_rate = 0.5\n")
    filed = load_recipe(path, [], {"model": "dsm"}).training
    assert (filed.learning_rate, filed.constant) == (0.5, 0.2)
    said = load_recipe(path, ["training.learning_rate=0.25"], {"model": "dsm"}).training
    assert (said.learning_rate, said.constant) == (0.25, 0.2)
    path.write_text("model = 'gru'\n")
    assert load_recipe(path, [], {}).training.batch == 128
    assert load_recipe(path, [], {"model": "cd"}).training.batch == usual.batch  # the model that is made, not the file's
    resumed = load_recipe(None, [], {"model": "dsm"}, {"training": {"learning_rate": 0.125}}).training
    assert (resumed.learning_rate, resumed.constant) == (0.125, 0.2)


def test_given_actions_a_model_also_sees_its_past(tmp_path: Path) -> None:
    def past(recipe: TransitionRecipe) -> tuple[int | str, bool]:
        return recipe.network["history"], recipe.network["previous_control"]

    path = tmp_path / "r.toml"
    path.write_text("actions = true\n")
    for model in ("dsm", "field"):
        assert past(load_recipe(None, [], {"model": model})) == (0, False)
        for with_actions in (
            load_recipe(None, [], {"model": model, "actions": True}),
            load_recipe(None, ["actions=true"], {"model": model}),
            load_recipe(path, [], {"model": model}),
        ):
            assert past(with_actions) == ("auto", True)  # settled by the states' fields, see test_scaling
        assert past(load_recipe(path, [], {"model": model, "actions": False})) == (0, False)
        assert past(load_recipe(path, ["network.history=3"], {"model": model})) == (3, True)
        none = ["network.history=0", "network.previous_control=false"]
        assert past(load_recipe(path, none, {"model": model})) == (0, False)
        own = {"actions": True, "network": {"history": 0, "previous_control": False}}  # as a run that is gone on with
        assert past(load_recipe(None, [], {"model": model}, own)) == (0, False)
    assert "history" not in load_recipe(path, [], {"model": "gaussian"}).network
    with pytest.raises(EbmtrajError, match=r"network\.previous_control = true needs a past"):
        load_recipe(path, ["network.history=0"], {"model": "dsm"})


@pytest.mark.parametrize(
    ("model", "change", "word"),
    [
        ("dsm", "training.steps=0", "training.steps"),
        ("dsm", "training.batch=-1", "training.batch"),
        ("dsm", "training.learning_rate=nan", "training.learning_rate"),
        ("dsm", "training.seconds=-3", "training.seconds"),
        ("dsm", "training.ema=1.0", "ema"),
        ("dsm", "training.guard.factor=0.5", "factor"),
        ("dsm", "training.guard.lower_rate=0", "lower_rate"),
        ("dsm", "network.width=-3", "width"),
        ("dsm", "network.depth=0", "depth"),
        ("dsm", "network.base_share=1.5", "base_share"),
        ("dsm", "network.bound=0", "bound"),
        ("dsm", "network.sampler.steps=-1", "steps"),
        ("dsm", "network.sampler.clip=-1.0", "clip"),
        ("dsm", "network.sampler.noise=0.1", "ladder"),
        ("dsm", "network.sampler.ladder.sigma_min=30.0", "sigma_min"),
        ("dsm", "network.sampler.ladder.predictor=rk4", "predictor"),
        ("dsm", "network.sampler.backend=numpy", "backend"),
        ("dsm", "network.buffer=3", "unknown key buffer"),
        ("dsm", "network.sampler.ladder.spacing=even", "spacing"),
        ("cd", "network.buffer=0", "buffer"),
        ("cd", "network.keep=1.5", "keep"),
        ("cd", "network.space=body", "space"),
        ("cd", "network.sampler.step_size=0.0", "step_size"),
        ("cd", "network.sampler.scale=[1.0, -1.0]", "scale"),
        ("cd", "network.sampler.ladder.levels=5", "ladder"),
        ("fc", "network.width=0", "width"),
        ("gaussian", "network.low=3.0", "low"),
        ("diffusion", "network.width=3", "unknown transition model 'diffusion'"),
        ("gausian", "network.width=3", "did you mean gaussian?"),
    ],
)
def test_what_makes_no_model_is_refused(model: str, change: str, word: str) -> None:
    with pytest.raises(EbmtrajError) as caught:
        load_recipe(None, [change], {"model": model})
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
