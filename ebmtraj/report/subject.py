"""A run directory as a report reads it: what it is, what it was told, how it went, what was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebmtraj.config import read_toml
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.registry import JOINT
from ebmtraj.report.tables import number
from ebmtraj.runs import Run, read_json
from ebmtraj.training.checkpoint import load_tensors
from ebmtraj.training.run import CHECKPOINT

NAMES = {
    "transition": "transition model",
    "plan": "model that plans windows of actions",
    "sequence": "model that plans sequences of states",
    "clone": "cloned policy",
    "image": "model of images",
    "generator": "generator",
    "tilt": "tilted generator",
    "policy": "data policy",
}
_BY_HEADER = {"window": "plan"}  # where a checkpoint calls it otherwise
_BY_KEY = {
    "ppo": "policy",
    "base": "tilt",
    "prior": "plan",
    "label": "clone",
    "conditional": "image",
    "actions": "transition",
}


@dataclass(frozen=True)
class Subject:
    """One run, read once."""

    path: Path
    name: str
    kind: str  # a key of `NAMES`
    config: Mapping[str, Any]
    versions: Mapping[str, Any]  # and the machine
    rows: tuple[Mapping[str, Any], ...]  # of metrics.jsonl
    results: Mapping[str, Any]
    header: Mapping[str, Any] | None  # of the finished checkpoint; None: not finished

    @classmethod
    def read(cls, path: Path, name: str | None = None) -> Subject:
        """The run in this folder; raises `EbmtrajError` where there is none, or it is damaged."""
        run = Run.open(path, "train ...")
        config = read_toml(run.config)
        header = load_tensors(path / CHECKPOINT)[0] if (path / CHECKPOINT).exists() else None
        return cls(
            path,
            name or path.resolve().name,
            _kind(config, header),
            config,
            read_json(path / "versions.json") if (path / "versions.json").exists() else {},
            tuple(run.read_metrics()),
            read_json(run.results) if run.results.exists() else {},
            header,
        )

    @property
    def model(self) -> str:
        """Its model, by the name in the recipe."""
        return str(self.config.get("model", self.config.get("prior", self.config.get("label", self.kind))))

    @property
    def data(self) -> str:
        """The store that it was trained on, as the recipe names it."""
        return str(self.config.get("data", ""))

    @property
    def seed(self) -> int | None:
        """The seed of its training."""
        found = self.config.get("training", self.config).get("seed")
        return None if found is None else int(found)

    @property
    def finished(self) -> bool:
        """Whether it has the weights that are used."""
        return self.header is not None or (self.path / "checkpoints" / "policy.safetensors").exists()

    @property
    def events(self) -> list[Mapping[str, Any]]:
        """What the guard did."""
        return [row for row in self.rows if "event" in row]

    @property
    def command(self) -> str:
        """The command that makes such a run, without where."""
        if self.kind == "policy":
            return "policy train"
        kind = "jem" if self.kind == "image" and self.model in JOINT else self.kind
        return "tilt" if kind == "tilt" else f"train {kind}"

    def again(self) -> str:
        """The command line that makes this run again, elsewhere."""
        config, other = shlex.quote(str(self.path / "config.toml")), shlex.quote(f"{self.path}-again")
        if self.kind == "tilt":
            network, training = self.config["network"], self.config["training"]
            words = f"ebmtraj tilt {shlex.quote(str(self.config['base']))} --out {other} --seed {training['seed']}"
            return f"{words} --objective {network['objective']} --set training.steps={training['steps']}"
        data = f" --data {shlex.quote(self.data)}" if self.data else ""
        return f"ebmtraj {self.command} --recipe {config}{data} --run {other}"

    def going_on(self) -> str:
        """The command line that finishes it."""
        if self.kind == "tilt":
            return f"{self.again().replace('-again', '')} --resume"
        data = f" --data {shlex.quote(self.data)}" if self.data else ""
        return f"ebmtraj {self.command}{data} --run {shlex.quote(str(self.path))} --resume"

    def story(self) -> str:
        """One sentence on what it is and how good."""
        what = NAMES[self.kind]
        if self.kind == "transition":
            what = f"{what}, {'action-conditional' if self.config.get('actions') else 'unconditional'}"
        said = [f"A {what} ({self.model})" if self.model != self.kind else f"A {what}"]
        if self.header is not None:
            said.append(f", trained for {self.header.get('steps', 0):,} steps in {number(self.header.get('seconds'))} s")
            back = sum(row["event"] == "rolled back" for row in self.events)
            said.append(f" with {back} roll-back{'s' * (back > 1)} after divergence" if back else "")
        elif not self.finished:
            last = max((int(row.get("step", 0)) for row in self.rows), default=0)
            steps = self.config.get("training", {}).get("steps")
            return "".join(said) + f", not finished: {last:,} of {steps:,} steps." if steps else "".join(said) + "."
        return "".join(said) + ". " + self._worth()

    def _worth(self) -> str:
        """How good it is, in its own terms."""
        found = self.results
        if "frechet" in found:
            floor = found.get("floor")
            against = (
                f", {found['frechet'] / floor:.1f} times that of truth against truth ({number(floor)})" if floor else ""
            )
            return (
                f"Over {found['starts']:,} held-out episodes of {found['steps']} steps the Fréchet distance of its rollouts "
                f"to the truth is {number(found['frechet'])}{against}."
            )
        if found.get("plans"):
            return f"Its last plans: {plan_worth(found['plans'][-1])}."
        if isinstance(found.get("before"), Mapping):
            for key, label in (("frechet", "Fréchet distance"), ("share", "share of points near a mode")):
                if key in found["before"]:
                    return f"Tilting takes the {label} from {number(found['before'][key])} to {number(found['after'][key])}."
        if self.kind == "policy" and self.rows:
            last = self.rows[-1]
            return (
                f"In its last iteration it turned the cube {last['turned']:.2f} rad about the command and dropped it "
                f"{last['drops']:.2f} times per 100 steps."
            )
        loss = (self.header or {}).get("validation")
        return (
            f"Its validation loss is {number(loss) if (loss or 0) >= 0 else '−' + number(-loss)}."
            if loss is not None
            else ""
        )


def plan_worth(plan: Mapping[str, Any]) -> str:
    """What plans came to, in one clause."""
    said = [f"{plan['task']!r}, {plan['episodes']} episodes of {plan['steps']} steps"]
    if "progress_rad_per_100" in plan:
        said.append(f"{plan['progress_rad_per_100']:.2f} ± {plan['progress_se']:.2f} rad turned per 100 steps")
    if "success_rate" in plan:
        said.append(f"{plan['success_rate']:.0%} reached their goals")
    if "rmse_rad" in plan:
        said.append(f"{plan['rmse_rad']:.3g} rad off the goal's joints")
    said += [f"{label} kept {share:.0%} of the time" for label, share in plan.get("kept", {}).items()]
    return ", ".join([*said, f"{plan['drop_rate']:.0%} ended early"])


def _kind(config: Mapping[str, Any], header: Mapping[str, Any] | None) -> str:
    if header is not None:
        kind = str(header.get("kind"))
        kind = _BY_HEADER.get(kind, kind)
    else:
        kind = next(
            (kind for key, kind in _BY_KEY.items() if key in config), "generator" if "model" in config else "sequence"
        )
    if kind not in NAMES:
        raise EbmtrajError(f"a checkpoint of kind {kind!r} has no report; give a run of ebmtraj train, tilt or policy train")
    return kind
