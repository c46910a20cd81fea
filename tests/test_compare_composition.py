"""`ebmtraj compare composition` from start to end, tiny."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call

from ebmtraj.report.compare_composition import PLANE, TITLES
from ebmtraj.report.compare_composition_table import SECTIONS, markdown_composition, table_of


def test_tables_say_what_the_file_holds() -> None:
    spread = {"median": 0.1234, "min": 0.1, "max": 0.2}
    results = {
        "protocol": {"seeds": [0, 1], "titles": {}, "judge": {"size_px": 0.02, "shape_accuracy": 0.996}},
        "summary": {"size-place": {"size_px": spread}, "three": {"shape_accuracy": {"median": 0.9, "min": 0.9, "max": 0.9}}},
    }
    header, lines = table_of(results, "and")
    assert header[0] == "and, 2 seeds"
    assert lines[0][:2] == ["size & position", "0.123 <sub>0.100..0.200</sub>"]
    assert lines[1][4] == "90 %"
    assert lines[2][:2] == ["the judge, on renders", "0.020"]
    assert markdown_composition(results, "and").count("\n") == 5
    assert set(SECTIONS) == {"and", "or", "not", "pairs", "plane"}


@pytest.mark.slow
def test_a_tiny_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EBMTRAJ_DATA", str(tmp_path / "cache"))
    out = tmp_path / "composition.json"
    words = ["compare", "composition", "--steps", 12, "--samples", 8, "--out", out, "--workers", 1, "--json"]
    code, _, err = call(capfd, *words, "--seeds", 1, "--pictures", tmp_path / "pictures")
    assert code == 0, err
    found = json.loads(out.read_text())
    assert {row["row"] for row in found["rows"] if not row["row"].startswith("plane")} == set(TITLES)
    assert {row["composition"] for row in found["rows"] if row["row"].startswith("plane")} == set(PLANE)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"sprites.png", "plane.png"}
    code, _, err = call(capfd, *words, "--seeds", 1)
    assert code == 2
    assert "--resume to go on" in err
    code, said, err = call(capfd, *words, "--seeds", 1, "--resume")
    assert code == 0, err
    assert json.loads(said)["rows"] == found["rows"]
    code, _, err = call(capfd, *words, "--seeds", 1, "--resume", "--split", "train")
    assert code == 2
    assert "use test, or validation" in err
