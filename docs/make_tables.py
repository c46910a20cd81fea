"""Write the results tables of README.md from docs/results/*.json; with --check, only say whether they are up to date.

usage: python docs/make_tables.py [--check] [--from runs/demo]

`--from` first takes a demo's results.json and pictures into docs/results and docs/images.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from ebmtraj.report.style import title
from ebmtraj.report.tables import markdown_table

ROOT = Path(__file__).parent.parent
PICTURES = {"frechet.png": "frechet.png", "strip.png": "figures/unconditional/strip.png"}
PICTURES["rollouts.gif"] = "figures/unconditional/rollouts.gif"


def take(demo: Path) -> None:
    """Copy what a demo made."""
    results = json.loads((demo / "results.json").read_text(encoding="utf-8"))
    for key in ("pictures", "pictures_missing", "figure"):
        results.pop(key, None)
    target = ROOT / "docs" / "results" / "demo.json"
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, source in PICTURES.items():
        shutil.copyfile(demo / source, ROOT / "docs" / "images" / name)


def demo_table(results: dict[str, Any]) -> str:
    """The demo's figures as markdown."""
    names = {"unconditional": "unconditional", "action_conditional": "action-conditional"}
    rows = {f"Fréchet distance, {names[panel]}": values for panel, values in results["frechet"].items()}
    rows |= {f"of one-step changes, {names[panel]}": values for panel, values in results["frechet_changes"].items()}
    rows |= {f"energy score, {names[panel]}": values for panel, values in results["energy_score"].items()}
    table = markdown_table(rows, corner=f"{results['starts']} held-out episodes x {results['steps']} steps")
    machine, versions = results["machine"], results["versions"]
    trained = "; ".join(
        f"{names[panel]}: " + ", ".join(f"{title(name)} {seconds:.0f} s" for name, seconds in values.items())
        for panel, values in results["training_seconds"].items()
    )
    return (
        f"{table}\nLower is better. Training time on one core each, {trained}. One seed ({results['seed']}), "
        f"{results['seconds']['total']:.0f} s in all on "
        f"{machine['cores']} cores ({machine['processor']}), torch {versions['torch']}, MuJoCo {versions['mujoco']}; "
        "made by `make results`, every number in [docs/results/demo.json](docs/results/demo.json).\n"
    )


def fill(text: str) -> str:
    """The README with its tables made anew."""
    results = json.loads((ROOT / "docs" / "results" / "demo.json").read_text(encoding="utf-8"))
    block = f"<!-- results:demo -->\n{demo_table(results)}<!-- /results:demo -->"
    return re.sub(r"<!-- results:demo -->.*?<!-- /results:demo -->", lambda _: block, text, flags=re.DOTALL)


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--from", dest="demo", type=Path)
    arguments = parser.parse_args()
    if arguments.demo is not None:
        take(arguments.demo)
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = fill(old)
    if arguments.check:
        if old != new:
            print("README.md does not show what docs/results holds; run `make tables`", file=sys.stderr)
        return int(old != new)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
