"""`ebmtraj doctor` tries things: what is broken is found, and told from what is merely missing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from commands import call

from ebmtraj.report import doctor
from ebmtraj.report.doctor import EXTRAS, Finding, examine, healthy


def test_a_machine_on_which_the_tests_run_is_well(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_CHECKS", {k: v for k, v in doctor._CHECKS.items() if k != "drawing"})
    code, out, _ = call(capfd, "doctor", "--json")
    assert code == 0
    facts = json.loads(out)
    named = {one["name"]: one for one in facts["findings"]}
    assert facts["ok"]
    assert "24 episodes simulated and stored" in named["collect and train"]["said"]
    assert {f"extra {name}" for name in EXTRAS} <= set(named)
    for name in EXTRAS:  # told as they are
        one = named[f"extra {name}"]
        assert one["ok"] or one["mend"] == f"pip install 'ebmtraj[{name}]'"


def test_what_is_broken_fails_and_what_is_missing_does_not(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(doctor, "collect", broken)
    monkeypatch.setattr(doctor, "_CHECKS", {name: doctor._CHECKS[name] for name in ("collect and train",)})
    code, _, err = call(capfd, "doctor")
    assert code == 2
    assert "no space left" in " ".join(err.split())
    assert healthy([Finding("GPU", False, "none"), Finding("versions", True, "all", needed=True)])
    assert not healthy([Finding("versions", False, "old", needed=True)])


@pytest.mark.parametrize(("free", "ok"), [(5e8, False), (5e9, True)])
def test_memory_is_asked_for(free: float, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda device: free)
    monkeypatch.setattr(doctor, "_CHECKS", {"memory and disk": doctor._memory})
    found = {one.name: one for one in examine()}
    assert found["memory"].ok == ok
    assert found["memory"].needed


def test_a_backend_that_does_not_draw_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_wrong() -> Iterator[Finding]:
        yield from (one for one in doctor._drawing() if one.name.startswith(("OpenGL", "pictures")))

    monkeypatch.setattr(doctor, "BACKENDS", ("no-such-backend",))
    found = {one.name: one for one in only_wrong()}
    assert not found["OpenGL, no-such-backend"].ok
    assert "not a backend" in found["OpenGL, no-such-backend"].said
    assert "apt install" in found["pictures"].mend
