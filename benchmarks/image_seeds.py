"""Train an image energy on many seeds: does any diverge, does the guard bring it back, and do the samples agree?

Each seed is a run directory of its own; one that is there and finished is only measured.

    python benchmarks/image_seeds.py --seeds 20 --runs runs/image_seeds --out docs/results/image_seeds.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from ebmtraj.config import parse_overrides
from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.errors import DivergedError
from ebmtraj.evaluation.image_features import Judge, judge_facts, judge_of
from ebmtraj.evaluation.image_scores import distance_scores, label_scores
from ebmtraj.images.draw import draw
from ebmtraj.images.fit import load_image_recipe, train_image
from ebmtraj.images.registry import ENERGIES, load_image_model
from ebmtraj.runs import Run, machine, versions
from ebmtraj.training.run import CHECKPOINT


def trained(path: Path, options: argparse.Namespace, seed: int) -> None:
    """A finished run of this seed; raises `DivergedError` where the guard gave up."""
    if (path / CHECKPOINT).exists():
        return
    given = {"model": options.objective, "data": options.data, "conditional": options.conditional}
    recipe = load_image_recipe(None, [*options.set, f"training.seed={seed}"], given)
    train_image(recipe, path, device="cpu", resume=True)


def measured(path: Path, store: ImageStore, judge: Judge, seed: int, samples: int) -> dict[str, Any]:
    """What became of one seed: how often it was rolled back, and how its samples score on the validation split."""
    model, header = load_image_model(path)
    rows = Run(path).read_metrics()
    began = time.perf_counter()
    drawn = draw(model, samples, seed=seed)
    seconds = time.perf_counter() - began
    real = store.read("train")
    features, labels = judge.judge(drawn.pixels)
    found: dict[str, Any] = {
        "seed": seed,
        "diverged": False,
        "rollbacks": sum(row.get("event") == "rolled back" for row in rows),
        "steps": header["steps"],
        "validation": header["validation"],
        "training_seconds": header["seconds"],
        "sampling_seconds": round(seconds, 2),
        **distance_scores(features, judge.judge(real.pixels)[0], samples, seed),
    }
    if real.labels is not None:
        scores = label_scores(drawn.pixels, labels, real.pixels, real.labels, store.classes, drawn.labels)
        found |= {name: scores[name] for name in ("least_share", "spread", "agreement") if name in scores}
    return found


def _without_folders(words: list[str]) -> list[str]:
    """The command's words without --runs and --out, which say nothing of the figures."""
    folders = {i + k for i, word in enumerate(words) if word in ("--runs", "--out") for k in (0, 1)}
    return [word for i, word in enumerate(words) if i not in folders]


def main() -> None:
    """Run, print, and write with --out."""
    parser = argparse.ArgumentParser(description="An image energy on many seeds")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--objective", choices=ENERGIES, default="dsm")
    parser.add_argument("--conditional", action="store_true")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1200, help="drawn of each seed; as many training images beside them")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the recipe, as of ebmtraj train image --set")
    parser.add_argument("--runs", type=Path, default=Path("runs/image_seeds"))
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    parse_overrides(options.set)

    store = open_images(options.data)
    judge = judge_of(store)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        path = options.runs / f"seed-{seed}"
        try:
            trained(path, options, seed)
            row = measured(path, store, judge, seed, options.samples)
            print(
                f"seed {seed}: Frechet {row['frechet']:.3f}, {row['rollbacks']} roll-backs, {row['training_seconds']:.0f} s"
            )
        except DivergedError as error:
            row = {"seed": seed, "diverged": True, "why": str(error)}
            print(f"seed {seed}: {error}")
        rows.append(row)
    good = [row for row in rows if not row["diverged"]]
    summary = {
        "seeds": len(rows),
        "diverged": len(rows) - len(good),
        "brought_back_by_the_guard": sum(row["rollbacks"] > 0 for row in good),
        "frechet_median": statistics.median(row["frechet"] for row in good) if good else None,
        "frechet_worst": max((row["frechet"] for row in good), default=None),
    }
    print(json.dumps(summary))
    if options.out:
        result = {
            "command": " ".join(["python", "benchmarks/image_seeds.py", *_without_folders(sys.argv[1:])]),
            "protocol": f"{options.samples} samples against as many training images of {store.name}, features of the judge",
            "judge": judge_facts(judge, store),
            "machine": machine(),
            "versions": versions(),
            "summary": summary,
            "rows": rows,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
