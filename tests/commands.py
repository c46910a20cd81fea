"""Commands run in the test's own process."""

from __future__ import annotations

import sys

import pytest

from ebmtraj.cli import app


def call(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ebmtraj", *map(str, words)])
        try:
            app.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    output = capfd.readouterr()
    return code, output.out, output.err
