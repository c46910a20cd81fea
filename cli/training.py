"""What the commands that train one model share: their options, and the carrying out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebmtraj.cli.common import Device, Json, Overwrite, Resume, Set, print_json, progress, say
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_estimate

if TYPE_CHECKING:
    from ebmtraj.training.loop import Progress, Result


@dataclass(frozen=True)
class Training:
    """What every command that trains is asked for beside its model."""

    run: Annotated[Path, typer.Option(help="The run directory to make.")]
    recipe: Annotated[Path | None, typer.Option(help="A TOML recipe; a run's own config.toml is one.")] = None
    set_: Set = None
    seed: Annotated[int | None, typer.Option(help="Same seed, same bits (on CPU).", min=0, max=2**63 - 1)] = None
    device: Device = "auto"
    resume: Resume = False
    overwrite: Overwrite = False
    dry_run: DryRun = False
    json_: Json = False

    def carry_out(
        self,
        load: Callable[..., Any],
        train: Callable[..., tuple[Result, Any]],
        kind: Any,
        given: dict[str, Any],
        doing: Callable[[Any], str] = lambda recipe: f"training {recipe.model}",
    ) -> tuple[Result, Any]:
        """Read the recipe, with what is `given` on top, and train: what it came to, and the recipe as it was run."""
        from ebmtraj.config import read_toml
        from ebmtraj.errors import EbmtrajError

        run = self.run
        if self.resume and self.overwrite:
            raise EbmtrajError(
                "choose one of --resume and --overwrite: the first goes on with a run, the second replaces it"
            )
        overrides = [*(self.set_ or []), *([f"training.seed={self.seed}"] if self.seed is not None else [])]
        # a resumed run goes on under its own recipe; what is given beside --resume must agree with it
        begun = self.resume and (run / "config.toml").exists()
        settings = load(self.recipe, overrides, given, read_toml(run / "config.toml") if begun else None)
        if self.dry_run:
            from ebmtraj.report.estimate import estimate_training

            refuse_resume(begun)
            estimate = estimate_training(kind, settings, run, device=self.device, overwrite=self.overwrite)
            tell_estimate(estimate, self.json_)
        if self.resume and not begun:
            if any((run / "checkpoints").glob("*.safetensors")):
                raise EbmtrajError(
                    f"run {run} has lost its recipe, {run / 'config.toml'}; restore it, or choose another --run"
                )
            say(f"{run} holds no run yet; beginning it")
        with progress() as bar:
            task = bar.add_task(doing(settings), total=settings.training.steps, note="")
            return train(
                settings,
                run,
                device=self.device,
                resume=self.resume,
                overwrite=self.overwrite,
                on_progress=lambda p: bar.update(task, completed=p.step, total=p.steps, note=_note(p)),
            )

    def tell(self, trained: tuple[Result, Any], named: tuple[str, ...], following: str | None = None) -> None:
        """Say what it came to, with these settings of the recipe in JSON, and the command that comes next."""
        result, settings = trained
        if self.json_:
            said = {name: getattr(settings, name) for name in named}
            print_json({"run": str(self.run), **said, **_outcome(result, self.run)})
            return
        say(_summary(result, self.run))
        if following:
            say(f"next: {following}")


def _note(p: Progress) -> str:
    return f"{p.stage} loss {p.loss:.4f}" + ("" if p.validation is None else f" validation {p.validation:.4f}")


def _outcome(result: Result, run: Path) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 2),
        "validation": result.validation,
        "rollbacks": result.rollbacks,
        "checkpoint": str(run / "checkpoints" / "best.safetensors"),
    }


def _summary(result: Result, run: Path) -> str:
    back = f", {result.rollbacks} roll-backs after divergence" if result.rollbacks else ""
    checkpoint = run / "checkpoints" / "best.safetensors"
    return f"{run}: {result.steps} steps in {result.seconds:.0f} s{back}, validation {result.validation:.4f}, {checkpoint}"
