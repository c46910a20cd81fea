"""Help and completion come at once: no heavy library is imported before a command works."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from ebmtraj.cli import complete

HEAVY = ("torch", "mujoco", "matplotlib", "zarr", "scipy", "gymnasium", "sklearn", "pandas", "numpy", "PIL")
WALK = """
import contextlib, io, json, sys
sys.argv = ["ebmtraj"]
import typer
from ebmtraj.cli.app import app

def commands(command, path=()):
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))

said = {}
for path, command in commands(typer.main.get_command(app)):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        app([*path, "--help"], standalone_mode=False)
    heavy = sorted({name.split(".")[0] for name in sys.modules} & set(HEAVY))
    said[" ".join(path)] = [heavy, out.getvalue(), [p.opts[0] for p in command.params], bool(command.no_args_is_help)]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, list]:
    program = f"HEAVY = {HEAVY!r}\n{WALK}"
    environment = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    found: dict[str, list] = json.loads(done.stdout)
    assert len(found) > 40
    return found


def test_no_help_imports_a_heavy_library(helps: dict[str, list]) -> None:
    for command, (heavy, *_) in helps.items():
        assert heavy == [], f"ebmtraj {command} --help imports {heavy}"


def test_every_command_has_an_example_that_names_it(helps: dict[str, list]) -> None:
    for command, (_, text, _, group) in helps.items():
        if not group:
            assert f"Example: ebmtraj {command}" in " ".join(text.replace("│", " ").split()), command


def test_every_option_says_what_it_is_for(helps: dict[str, list]) -> None:
    for command, (_, text, options, _) in helps.items():
        for option in options:
            if option.startswith("--"):
                assert option in text, (command, option)


def test_help_comes_at_once() -> None:
    """Beside the libraries that print it, as seconds depend on the machine and on what else it does."""

    def took(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of the processor

    bare, ours = zip(
        *((took("-c", "import typer.rich_utils"), took("-m", "ebmtraj", "--help")) for _ in range(4)), strict=True
    )
    assert min(ours) <= 3.5 * min(bare), (ours, bare)


def test_the_shell_completes_commands_options_and_values() -> None:
    def offered(line: str) -> list[str]:
        words = line.split(" ")
        environment = {**os.environ, "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        environment["_EBMTRAJ_COMPLETE"] = "complete_bash"
        program = "import sys; sys.argv = ['ebmtraj']; from ebmtraj.cli.app import main; main()"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        return done.stdout.split()

    assert offered("ebmtraj rep") == ["report"]
    assert set(offered("ebmtraj train ")) >= {"transition", "plan", "sequence", "image", "jem", "generator", "clone"}
    assert offered("ebmtraj train transition --mod") == ["--model"]
    assert offered("ebmtraj train transition --model g") == ["gaussian", "gru"]
    assert "--dry-run" in offered("ebmtraj collect --d")


def test_what_is_offered_is_what_there_is() -> None:
    from ebmtraj.device import DEVICES
    from ebmtraj.envs.policies import ACTION_RULES
    from ebmtraj.generators.registry import GENERATORS
    from ebmtraj.generators.tilt_fit import DEFAULTS
    from ebmtraj.images import registry as images
    from ebmtraj.trajectories import registry as transitions
    from ebmtraj.trajectories.clone import LABELS
    from ebmtraj.trajectories.window import PRIORS

    same: Callable[[object, object], bool] = lambda a, b: set(a) == set(b)  # type: ignore[call-overload]  # noqa: E731
    assert same(complete.TRANSITION_OBJECTIVES, transitions.ENERGIES)
    assert same(complete.TRANSITION_MODELS, {"energy", *transitions.MODELS} - set(transitions.ENERGIES))
    assert same(complete.IMAGE_OBJECTIVES, images.ENERGIES)
    assert same(complete.IMAGE_MODELS, {"energy", *images.MODELS, *images.OF_FACTORS} - set(images.ENERGIES))
    assert same(complete.JOINT_MODELS, images.JOINT)
    assert same(complete.GENERATORS, GENERATORS)
    assert same(complete.TILT_OBJECTIVES, DEFAULTS)
    assert same(complete.PRIORS, PRIORS)
    assert same(complete.CLONE_LABELS, LABELS)
    assert same(complete.ACTION_RULES, ACTION_RULES)
    assert same(complete.DEVICES, DEVICES)
