"""What README and docs/ tell a reader is true: commands parse, links lead somewhere, Python blocks run, the site builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import typer
from threadpoolctl import threadpool_limits

from ebmtraj.cli.app import app
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Transitions

ROOT = Path(__file__).parents[1]


def load(name: str) -> Any:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PAGES = load("commands")
COMMANDS = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def parse(words: tuple[str, ...]) -> str | None:
    """What is wrong with a command line, or None."""
    command: Any = COMMANDS
    left, name = list(words), "ebmtraj"
    while hasattr(command, "commands"):
        if not left or left[0] not in command.commands:
            return (
                None if left in ([], ["--help"]) else f"no such command: {' '.join(words)}"
            )  # a group alone gives its help
        name = left.pop(0)
        command = command.commands[name]
    if left == ["--help"]:
        return None
    try:
        command.make_context(name, left)
    except Exception as error:
        said = error.format_message() if hasattr(error, "format_message") else error
        return f"{' '.join(words)}: {said}"
    return None


def test_every_command_of_every_page_is_one() -> None:
    shown, named = list(PAGES.commands()), list(PAGES.inline_commands())
    assert len(shown) > 80
    assert len(named) > 20
    assert [f"{c.page.name}: {said}" for c in shown if (said := parse(c.words))] == []
    wrong = [
        (c, said) for c in named if (said := parse(c.words)) and ": Missing " not in said
    ]  # in a sentence, some are left out
    assert [f"{c.page.name}: {said}" for c, said in wrong] == []
    assert parse(("collect", "x.zarr", "--nope", "1")) is not None
    assert parse(("nope",)) is not None


READERS = {  # what a reader brings
    "my_decoder": torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Unflatten(1, (1, 8, 8))),
    "real": torch.rand(600, 1, 8, 8),
    "held_out": torch.rand(200, 1, 8, 8),
}


def anchor(heading: str) -> str:
    """The anchor of a heading, as mkdocs and GitHub make it of plain words."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in [*PAGES.PAGES, *ROOT.glob("*.md")]:
        text = PAGES.FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"\w+:", target):
                continue
            path, _, part = target.partition("#")
            file = page if not path else (page.parent / path)
            if not file.exists():
                broken.append(f"{page.name}: {target}")
            elif part and file.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", PAGES.FENCE.sub("", file.read_text(encoding="utf-8")), re.M)
                if part not in map(anchor, headings):
                    broken.append(f"{page.name}: {target}")
    assert broken == []


@pytest.mark.parametrize("block", [b for b in PAGES.blocks() if b.language == "python"], ids=lambda b: b.page.stem)
def test_python_of_the_pages_runs(block: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compiled = compile(block.text, str(block.page), "exec")
    if "runs/" not in block.text and "explain(energy, x=x)" not in block.text:  # those go on from a run, or the block before
        exec(compiled, {"__name__": __name__, **READERS})


def test_the_model_of_the_page_is_one(hand_store: Path) -> None:
    page = next(b for b in PAGES.blocks() if b.page.name == "extend.md" and b.language == "python")
    names: dict[str, Any] = {"__name__": __name__}
    exec(page.text, names)
    store = Store.open(hand_store)
    model = names["LaplaceModel"](store.state_fields, store.action_fields, actions=False, config=names["LaplaceConfig"]())
    data = Transitions.load(store, "train")
    model.prepare(data)
    (stage,) = model.stages()
    noise = torch.Generator().manual_seed(0)
    rate = torch.optim.Adam(stage.module.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss, _ = stage.loss(data.sample(128, noise), noise)
        rate.zero_grad()
        loss.backward()
        rate.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10])
    state = data.at(torch.arange(4)).state
    assert model.sample_next(state, None, noise).shape == state.shape


def test_the_reference_of_commands_is_up_to_date() -> None:
    assert load("make_cli").page() == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "api" / "samplers.html").read_text(encoding="utf-8")
    assert "ebmtraj.samplers.langevin" in page
    assert "<p>lambda of paper 000, equation 1</p>" in page  # what is said beside a field
    assert "<p><code>(B,)</code> at the last state</p>" in page
    assert not re.search(r'(?:src|href)="https?://(?!squidfunk)', page)  # nothing is fetched from elsewhere
    assert broken_links(tmp_path / "site") == []


def broken_links(site: Path) -> list[str]:
    """Links between built pages, and to their parts, that lead nowhere; 404.html's start where the site will be served."""
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html") if page.name != "404.html"}
    parts = {page: set(re.findall(r'\sid="([^"]+)"', text)) for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        for link in re.findall(r'\s(?:href|src)="(?!\w+:)([^"]*)"', text):
            path, _, part = unquote(link).partition("#")
            there = Path(os.path.normpath(page.parent / path.partition("?")[0])) if path else page
            there = there / "index.html" if there.is_dir() else there
            if not there.exists() or (part and there in parts and part not in parts[there]):
                broken.append(f"{page.name}: {link}")
    return broken


def test_a_broken_link_of_the_site_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="one"></h1><a href="#one"></a><a href="b.html#two"></a><a href="c.html"></a>')
    (tmp_path / "b.html").write_text('<a href="a.html#one"></a><img src="https://x.org/y.png">')
    assert broken_links(tmp_path) == ["a.html: b.html#two", "a.html: c.html"]
