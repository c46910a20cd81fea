"""What every export shares: it is made under a temporary name beside its place and renamed when it is whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ebmtraj.datasets.zarr_files import URL_LIKE, plain
from ebmtraj.errors import EbmtrajError


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: str
    episodes: int
    transitions: int
    notes: tuple[str, ...] = ()


def local_path(out: str | Path) -> Path:
    """A path to write to, `~` expanded; raises `EbmtrajError` for a URL and for nothing."""
    text = plain(out)
    if not text.strip():
        raise EbmtrajError("the path to write to is empty; give one")
    if "://" in text or URL_LIKE.match(text):
        raise EbmtrajError(f"{out}: only stores can be written to a URL; give a local path, and copy it from there")
    return Path(text).expanduser()


@contextlib.contextmanager
def replacing(out: Path, *, overwrite: bool, ours: Callable[[Path], bool], kind: str) -> Iterator[Path]:
    """Give a temporary path to write to; at the end it takes the place of `out`, and after a fault nothing is left.

    Something at `out` is replaced only with `overwrite` and where `ours` recognises it (or it is an empty folder). Raises
    `EbmtrajError` where it may not be replaced or the disk can't be written.
    """
    refuse(out, overwrite=overwrite, ours=ours, kind=kind)
    partial = out.with_name(f".{out.name}.partial")  # always the same name: a killed export leaves at most one
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        if out.exists():
            old = out.with_name(f".{out.name}.old")
            _remove(old)
            out.rename(old)
            partial.rename(out)
            _remove(old)
        else:
            partial.rename(out)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:160]
        raise EbmtrajError(f"can't write {out}: {reason}; free the disk or mend the rights") from None
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def refuse(out: Path, *, overwrite: bool, ours: Callable[[Path], bool], kind: str) -> None:
    """Raise `EbmtrajError` where `out` exists and may not be replaced."""
    if not out.exists():
        return
    if not overwrite:
        raise EbmtrajError(f"{out} exists; give another path or --overwrite")
    if not ours(out) and not (out.is_dir() and not any(out.iterdir())):
        raise EbmtrajError(f"{out} holds something that is not a {kind} export; choose another path")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
