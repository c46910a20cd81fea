"""Concepts of images: trained through the command line, composed, drawn, and read; what a user can get wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from threadpoolctl import threadpool_limits
from torch import Tensor

from ebmtraj.datasets.dsprites import FILE, dsprites
from ebmtraj.datasets.image_writer import write_images
from ebmtraj.datasets.images import ImageStore
from ebmtraj.datasets.sprites import ORIENTATIONS, PLACES, SCALES, corner, render_sprites, sprites
from ebmtraj.energies.concept import ConceptEnergy, Evidence, measures
from ebmtraj.energies.expression import Leaf, leaves, parse
from ebmtraj.energies.value_place import ValuePlaceEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.sprite_judge import SpriteJudge, Validity, random_factors, reading_errors, truth_of
from ebmtraj.images.compose import COMPOSING, load_concepts, value_number
from ebmtraj.images.fit import load_image_recipe, train_image
from ebmtraj.images.pair import by_value
from ebmtraj.images.registry import load_image_model
from ebmtraj.nets.encoder import Encoder

SMALL = [
    *("training.steps=6", "training.batch=8", "training.check_every=3", "network.width=8", "network.evidence_width=8"),
    *("network.sampler.steps=1", "network.sampler.ladder.levels=4"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return write_images(tmp_path_factory.mktemp("data") / "sprites.zarr", sprites(16, count=400))


@pytest.fixture(scope="module")
def runs(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, condition in {"size": "scale", "shape": "shape", "place": "x,y"}.items():
        found[name] = folder / name
        first = [f"network.prior={folder / 'size'}"] if name != "size" else []
        given = {"model": "concept", "conditional": True, "condition": condition, "data": store.path}
        train_image(load_image_recipe(None, [*SMALL, *first], given), found[name], device="cpu")
    return found


def test_factors_stand_in_place_of_classes(store: ImageStore) -> None:
    view = store.labelled_by(["scale"])
    assert view.classes == ("0.5", "0.6", "0.7", "0.8", "0.9", "1")
    images = view.read("train")
    assert images.labels is not None
    assert images.factors is not None
    np.testing.assert_allclose(SCALES[images.labels], images.factors[:, 1], atol=1e-6)
    pair = store.labelled_by(["x", "y"])
    assert len(pair.classes) == 1024
    labels = pair.read("test").labels
    assert labels is not None
    factors = pair.read("test").factors
    assert factors is not None
    named = np.array([[float(part) for part in pair.classes[label].split(",")] for label in labels])
    np.testing.assert_allclose(named, factors[:, 3:5], atol=1e-4)
    assert store.labelled_by(["shape"]).classes == ("square", "ellipse", "heart")
    with pytest.raises(EbmtrajError, match="unknown factor 'scal'; did you mean scale"):
        store.labelled_by(["scal"])


def test_the_official_file_is_read_without_its_pickle(tmp_path: Path) -> None:
    factors = random_factors(300, 5)
    pixels = (render_sprites(factors, 64)[:, 0] > 127).astype(np.uint8)
    values = np.concatenate([np.ones((300, 1)), factors], axis=1)
    values[:, 1] += 1
    with pytest.raises(EbmtrajError, match="is not there; get it from"):
        dsprites(tmp_path)
    np.savez_compressed(tmp_path / FILE, imgs=pixels, latents_values=values, metadata=np.array({"a": 1}, dtype=object))
    found = dsprites(tmp_path, count=100)
    assert found.factors is not None
    assert found.pixels.shape == (100, 1, 64, 64)
    rendered = render_sprites(found.factors, 64)[:, 0] > 127
    assert (rendered == found.pixels[:, 0].astype(bool)).mean() > 0.999
    np.savez_compressed(tmp_path / FILE, imgs=pixels[:200], latents_values=values)
    with pytest.raises(EbmtrajError, match="can't be read as dSprites: imgs is uint8 of shape"):
        dsprites(tmp_path)
    np.savez_compressed(tmp_path / FILE, imgs=pixels, latents_values=np.array([{"a": 1}] * 300, dtype=object))
    with pytest.raises(EbmtrajError, match="no plain array"):
        dsprites(tmp_path)


def test_parts_for_pairs_hold_what_they_say() -> None:
    both = corner("seen", count=600)
    assert both.factors is not None
    centre = (both.factors[:, 3:5] == np.float32(PLACES[16])).all(1)
    smallest = both.factors[:, 1] == np.float32(SCALES[0])
    assert (centre | smallest).all()
    assert (both.factors[:, 0] == 0).all()
    assert len(np.unique(both.factors[centre & ~smallest, 1])) == 5
    assert np.isin(both.factors[:, 2].round(4), ORIENTATIONS.round(4).astype(np.float32)).all()


def test_evidence_is_normalised_over_the_values() -> None:
    torch.manual_seed(0)
    x, level = torch.randn(5, 1, 16, 16), torch.full((5,), 0.4)
    named = Evidence((1, 16, 16), ("square", "ellipse", "heart"), width=8)
    each = torch.stack([torch.exp(-named(x, torch.full((5,), k), level)) / 3 for k in range(3)])
    torch.testing.assert_close(each.sum(0), torch.ones(5))
    torch.testing.assert_close(named.log_shares(x, level).exp().sum(1), torch.ones(5))
    fine = tuple(f"{v:.4f}" for v in np.linspace(0, 1, 4001))  # a density over -1 to 1 integrates to 1 beyond its ends, too
    measured = Evidence((1, 16, 16), fine, width=8)
    with torch.no_grad():
        measured.net.output.weight.zero_()
        measured.net.output.bias.copy_(torch.tensor([0.1, -2.5]))
        density = torch.stack([torch.exp(-measured(x, torch.full((5,), k), level)) / 2 for k in range(0, 4001, 10)])
    torch.testing.assert_close(density.sum(0) * 2 / 400, torch.ones(5), atol=1e-3, rtol=0)
    assert measures(("0", "1", "2")) is None
    assert measures(("red", "0.5")) is None


def test_a_concept_without_a_label_is_its_prior() -> None:
    torch.manual_seed(1)
    net = ConceptEnergy((1, 16, 16), ("a", "b"), width=8, evidence_width=8)
    x, level = torch.randn(4, 1, 16, 16), torch.tensor(0.5)
    prior = net.prior(x, None, level)
    torch.testing.assert_close(net(x, torch.tensor([-1, -1, -1, -1]), level), prior)
    told = net(x, torch.tensor([0, 1, -1, 0]), level)
    assert told[2] == prior[2]
    assert told[0] != prior[0]
    share = -torch.logsumexp(-torch.stack([net(x, torch.full((4,), k), level) for k in range(2)]), 0) + np.log(2)
    torch.testing.assert_close(share, prior)


@pytest.mark.parametrize("parts", ["sum", "joint", "joint-relative"])
def test_energies_of_pairs(parts: str) -> None:
    classes = tuple(f"{s},{x},{y}" for s in (0.5, 1) for x in (0.0, 0.5, 1) for y in (0.0, 0.5, 1))
    torch.manual_seed(2)
    net = ValuePlaceEnergy((1, 16, 16), classes, parts=parts, width=8).double()  # type: ignore[arg-type]
    x, label, level = torch.randn(3, 1, 16, 16).double(), torch.tensor([0, 7, 17]), torch.tensor([0.3, 1.0, 2.0]).double()
    x.requires_grad_(True)
    (truth,) = torch.autograd.grad(net(x, label, level).sum(), x)
    torch.testing.assert_close(net.gradient(x, label, level), truth)
    for i in range(3):
        own = slice(i, i + 1)
        torch.testing.assert_close(net(x[own], label[own], level[own]), net(x, label, level)[own])
    moved = net(x, torch.tensor([1, 8, 16]), level)
    assert not torch.allclose(moved, net(x, label, level), rtol=1e-9)
    if parts == "sum":  # the first energy knows nothing of the place, the second nothing of the value
        one, other = (net.terms(x, torch.tensor(at), level) for at in ([0, 7, 17], [1, 8, 16]))
        torch.testing.assert_close(one[0], other[0], rtol=1e-12, atol=0)
        swapped = net.terms(x, torch.tensor([9, 16, 8]), level)
        torch.testing.assert_close(one[1], swapped[1], rtol=1e-12, atol=0)


def test_values_count_alike_however_often_they_are_seen() -> None:
    errors, values = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0]), torch.tensor([0, 0, 0, 3, 1])
    torch.testing.assert_close(by_value(errors, values, 5), torch.tensor((2.0 + 10.0 + 20.0) / 3))
    errors.requires_grad_(True)
    by_value(errors, values, 5).backward()
    torch.testing.assert_close(errors.grad, torch.tensor([1, 1, 1, 3, 3]) / 9)


def test_a_pair_trains_where_two_sets_are_seen(tmp_path: Path) -> None:
    data = write_images(tmp_path / "seen.zarr", corner("seen", count=300))
    given = {"model": "pair", "conditional": True, "condition": "scale,x,y", "data": data.path}
    settings = [
        "training.steps=8",
        "training.batch=12",
        "training.check_every=2",
        "training.validation=20",
        "network.width=8",
    ]
    recipe = load_image_recipe(None, [*settings, "network.kl=0.25", "network.kl_chain.steps=2"], given)
    result, _ = train_image(recipe, tmp_path / "run", device="cpu")
    assert result.steps == 8
    assert np.isfinite(result.validation)
    model, _ = load_image_model(tmp_path / "run", network={"sampler": {"steps": 1, "ladder": {"levels": 3}}})
    drawn = model.sample(3, torch.Generator().manual_seed(0), torch.tensor([0, 1, 2]))
    assert drawn.shape == (3, 1, 16, 16)


def test_concepts_trained_apart_are_composed(runs: dict[str, Path]) -> None:
    concepts = load_concepts(list(runs.values()))
    energy = concepts.energy(parse("size:0.7 & position:0.2,0.4 & ~shape:heart"))
    x, level = torch.randn(3, 1, 16, 16), torch.tensor(0.6)
    x.requires_grad_(True)
    value = energy(x, None, level)
    (truth,) = torch.autograd.grad(value.sum(), x)
    with torch.no_grad():
        torch.testing.assert_close(energy.gradient(x, None, level), truth, rtol=1e-3, atol=1e-4)
    nets = [model.net for model in concepts.models]
    w = [COMPOSING.weight(name) for name in ("scale", "x,y", "shape")]
    none = torch.tensor([-1, -1, -1])
    size = nets[0].evidence(x, torch.tensor([2, 2, 2]), level)
    at = nets[2].evidence(x, torch.full((3,), 6 * 32 + 12), level)
    heart = nets[1].evidence(x, torch.tensor([2, 2, 2]), level)
    wanted = nets[0](x, none, level) + w[0] * size + w[1] * at + torch.nn.functional.softplus(-w[2] * heart)
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-3)
    assert len(concepts.prior().parts) == 1  # the others took theirs from the first


def test_compose_command(runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid, film = tmp_path / "s.npz", tmp_path / "s.gif"
    words = ["compose", "size:0.72 & (position:0.1,0.9 | position:0.9,0.1)", *map(str, runs.values())]
    quick = ["-n", "5", "--set", "steps=1", "--set", "ladder.levels=4", "--json"]
    code, out, err = call(capfd, *words, *quick, "--out", grid, "--gif", film)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["shape"] == [5, 1, 16, 16]
    assert np.load(grid)["pixels"].shape == (5, 1, 16, 16)
    assert film.read_bytes()[:3] == b"GIF"
    plane = tmp_path / "p.png"
    code, out, err = call(capfd, "compose", "ring:1.5,0.3 & ~gaussian:1.5,0,0.5", "--out", plane, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["total_variation"] < facts["exact_samples"] + 0.03
    assert plane.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["size:0.7 & & shape:heart", "size"], "column 12: '&' is not expected"),
        (["sise:0.7", "size"], "column 1: unknown factor 'sise'; did you mean size"),
        (["size:0.7 & shape:hart", "size", "shape"], "column 18: shape has no value 'hart'; did you mean heart"),
        (["size:3", "size"], "column 6: size:3 is out of range; use 0.5..1"),
        (["place:0.5", "place"], "column 7: place takes 2 numbers in 0..1,0..1"),
        (["size:0.7", "size", "size"], "is a second run told scale"),
        (["size:0.7", "nowhere"], "run .*nowhere does not exist"),
        (["ringg:1,1"], "column 1: unknown energy of the plane .* did you mean ring"),
        (["ring:1,0"], "column 6: ring: std = 0 must be above 0"),
        (["ring:1"], "column 6: ring takes 2 numbers: ring:radius,std"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    words: list[str], says: str, runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    known = {**runs, "nowhere": tmp_path / "nowhere"}
    given = [words[0], *(str(known[word]) for word in words[1:])]
    code, _, err = call(capfd, "compose", *given, "--out", tmp_path / "x.png")
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(says, err), err


def test_concepts_of_other_shapes_are_refused(
    runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_images(tmp_path / "large.zarr", sprites(32, count=100))
    words = ["train", "image", "--data", data.path, "--condition", "shape", "--run", str(tmp_path / "large")]
    code, out, err = call(capfd, *words, *(word for each in SMALL for word in ("--set", each)), "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == "concept"
    with pytest.raises(EbmtrajError, match="over different shapes can't be composed"):
        load_concepts([runs["size"], tmp_path / "large"])
    given = {"model": "concept", "conditional": True, "condition": "shape", "data": data.path}
    recipe = load_image_recipe(None, [f"network.prior={runs['size']}"], given)
    with pytest.raises(EbmtrajError, match=r"network\.prior"):
        train_image(recipe, tmp_path / "other", device="cpu")


def test_value_numbers() -> None:
    leaf: Leaf = leaves(parse("size:0.74"))[0]
    assert value_number(leaf, ("0.5", "0.6", "0.7", "0.8")) == 2
    assert value_number(leaves(parse("shape:heart"))[0], ("square", "heart")) == 1


def test_the_judge_counts_pixels() -> None:
    factors = torch.from_numpy(random_factors(50, 3)).float()
    truth = truth_of(factors, 16)
    assert float(truth.size.min()) >= 0.5 * 0.32 * 16 - 1e-5
    off = truth._replace(place=truth.place + torch.tensor([0.3, 0.4]), size=truth.size + 0.2)
    errors = reading_errors(off, truth)
    assert errors["place_px"] == pytest.approx(0.5, abs=1e-5)
    assert errors["size_px"] == pytest.approx(0.2, abs=1e-5)
    assert errors["shape_accuracy"] == 1
    pixels = torch.from_numpy(render_sprites(factors.double().numpy(), 16)).float() / 255
    centre: Tensor = (pixels.sum(2) * (torch.arange(16) + 0.5 - 8)).sum((1, 2)) / pixels.sum((1, 2, 3))
    assert (centre - truth.place[:, 0]).abs().max() < 0.6  # a heart's centre of mass is off its centre


def test_what_is_no_sprite_is_not_valid() -> None:
    class Knows(SpriteJudge):
        def read(self, pixels: Tensor, batch: int = 1000) -> object:  # type: ignore[override]
            return truth_of(factors[: len(pixels)], 16)

    factors = torch.from_numpy(random_factors(40, 4)).float()
    pixels = torch.from_numpy(render_sprites(factors.double().numpy(), 16)).float() / 255
    valid = Validity(Knows(16), bar=0.2)
    assert valid.facts(pixels)["valid"] > 0.9
    assert valid.facts(torch.zeros_like(pixels))["one_sprite"] == 0
    assert valid.facts(pixels.roll(2, dims=3))["valid"] < 0.2
    assert valid.facts((pixels + pixels.flip(0)).clamp(0, 1))["valid"] < 0.5


@pytest.mark.parametrize(("torus", "pool", "same"), [(True, True, True), (False, True, False), (True, False, False)])
def test_an_encoder_on_a_torus_is_blind_to_places(torus: bool, pool: bool, same: bool) -> None:
    torch.manual_seed(3)
    net = Encoder((1, 16, 16), 2, width=8, details=True, torus=torus, pool=pool).double()
    x, level = torch.randn(3, 1, 16, 16).double(), torch.full((3,), 0.5).double()
    moved = net(x.roll((4, -8), dims=(2, 3)), level)  # by whole pixels of the last stage
    assert torch.allclose(moved, net(x, level), rtol=1e-9, atol=0) == same


def test_compositions_are_drawn_colder_than_a_concept(runs: dict[str, Path]) -> None:
    concepts = load_concepts([runs["size"]])
    own, chain = concepts.first.config.sampler, concepts.chain()
    assert chain == COMPOSING.chain(own)
    assert chain.ladder == own.ladder
    assert chain.temperature < own.temperature
    energy = concepts.energy(parse("size:0.7"))
    drawn = [concepts.sample(energy, 2, torch.Generator().manual_seed(0), config) for config in (None, chain, own)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
