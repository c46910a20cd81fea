"""Runs as they were written before there were seals."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def unseal_run(run: Path) -> None:
    """Take every seal from a run's checkpoints and log."""
    for path in (run / "checkpoints").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["header"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        header.pop("recipe", None)
        save_file(tensors, path, metadata={"header": json.dumps(header)})
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in r.items() if k != "chain"}) + "\n" for r in rows)
    )
