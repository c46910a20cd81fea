"""What an installation without extras takes on disk: every default dependency with what it brings along, and its reason.

Reads what is installed beside ebmtraj; reasons are the comments in pyproject.toml.

    python benchmarks/install_size.py --out docs/results/install.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ebmtraj.runs import machine, versions, write_json

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
LINE = re.compile(r'^    "(?P<requirement>[^"]+)",\s+# (?P<reason>.+)$')


def reasons() -> dict[str, str]:
    """Why each default dependency is there; raises `SystemExit` where one has no reason."""
    text = PROJECT.read_text(encoding="utf-8")
    block = text.partition("\ndependencies = [\n")[2].partition("\n]\n")[0]
    found = {}
    for line in block.splitlines():
        match = LINE.match(line)
        if match is None:
            raise SystemExit(f"{PROJECT}: a dependency without a reason: {line.strip()}")
        found[canonicalize_name(Requirement(match["requirement"]).name)] = match["reason"]
    return found


def needs(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """A distribution and all that it requires here, by canonical names."""
    found: set[str] = set()
    waiting = [(canonicalize_name(name), extras)]
    while waiting:
        one, asked = waiting.pop()
        if one in found:
            continue
        found.add(one)
        for text in importlib.metadata.requires(one) or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*asked, "")):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def megabytes(name: str) -> float:
    """What the files of one installed distribution take, in MB; compiled bytecode is left out."""
    files = importlib.metadata.distribution(name).files or []
    paths = (Path(str(each.locate())) for each in files if each.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    """Measure, print a line a dependency, and write with --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    why = reasons()
    closure = {name: needs(name) for name in why}
    everything = set().union(*closure.values())
    size = {name: megabytes(name) for name in everything}
    rows: list[dict[str, Any]] = []
    for name, reason in why.items():
        others = set().union(*(found for other, found in closure.items() if other != name))
        alone = sorted(closure[name] - others - {name})
        rows.append(
            {
                "dependency": name,
                "version": importlib.metadata.version(name),
                "reason": reason,
                "mb": round(size[name], 2),
                "brings": alone,
                "brings_mb": round(sum(size[each] for each in alone), 2),
            }
        )
    shared = sorted(everything - set(why) - {each for row in rows for each in row["brings"]})
    rows.sort(key=lambda row: -(row["mb"] + row["brings_mb"]))
    for row in rows:
        print(f"{row['dependency']}: {row['mb']:.1f} MB + {row['brings_mb']:.1f} MB of its own; {row['reason']}")
    total = sum(size.values())
    print(f"{len(everything)} packages, {total:.0f} MB")
    if options.out:
        found = {
            "command": " ".join(["python", "benchmarks/install_size.py", *sys.argv[1:]]),
            "total_mb": round(total, 1),
            "packages": len(everything),
            "shared": {"names": shared, "mb": round(sum(size[each] for each in shared), 2)},
            "machine": machine(),
            "versions": versions(),
            "rows": rows,
        }
        write_json(options.out, found)


if __name__ == "__main__":
    main()
