"""A store's files: its arrays, chunks and shards, opening it by path or URL, and zarr's errors in one line."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.errors import GroupNotFoundError

from ebmtraj.datasets.blocks import SCHEMA
from ebmtraj.errors import EbmtrajError
from ebmtraj.locks import LOCK
from ebmtraj.runs import ctrl_c_later
from ebmtraj.seal import of_json

FORMAT = "ebmtraj-trajectories"
CHUNK_ROWS, SHARD_ROWS = 4096, 131_072
CHUNK_EPISODES, SHARD_EPISODES = 4096, 65_536

EPISODE_ARRAYS: dict[str, tuple[str, int, int | bool]] = {  # name: type, columns (0: a vector), value of what is missing
    "length": ("int64", 0, -1),
    "seed": ("uint64", 0, 0),
    "terminated": ("bool", 0, False),
    "block": ("int64", 0, -1),
    "digest": ("uint8", 32, 0),
}

URL_LIKE = re.compile(r"[A-Za-z][\w+.-]+:/")  # one letter would be a drive of Windows
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")  # zarr writes a file under such a name, then renames it


def is_vacant(path: str | Path) -> bool:
    """Whether there is nothing yet at `path`."""
    url = as_url(path)
    return open_group(url, "r") is None and not occupied(url)


def _is_local(url: str) -> bool:
    return "://" not in url


def as_url(path: str | Path) -> str:
    """A path or URL as zarr gets it: `~` expanded, no `file://`, no slash at a URL's end.

    Raises `EbmtrajError` for an empty path and as `known_scheme`.
    """
    text = plain(path)
    if not text.strip():
        raise EbmtrajError("the path of a store is empty; give a folder, or a URL such as s3://bucket/hand.zarr")
    known_scheme(text)
    return str(Path(text).expanduser()) if _is_local(text) else text.rstrip("/")


def plain(path: str | Path) -> str:
    """A `file://` URL as the path that it names, since fsspec makes no folders there; anything else as it is."""
    return str(path).removeprefix("file://")


def known_scheme(path: str | Path) -> None:
    """Raise `EbmtrajError` for a URL of a kind that fsspec does not know, or with one slash where two belong."""
    text = str(path)
    scheme, mark, rest = text.partition("://")
    if mark:
        from fsspec import available_protocols  # type: ignore[import-untyped]

        chained = scheme.split("::")  # as in simplecache::s3://
        unknown = [one for one in chained if one not in available_protocols()]
        if unknown:
            raise EbmtrajError(f"{text}: unknown URL scheme {unknown[0]!r}; use a folder, or a URL such as file:// or s3://")
    elif URL_LIKE.match(text):
        scheme, _, rest = text.partition(":/")
        raise EbmtrajError(f"{text}: a URL has two slashes, {scheme}://{rest}; for a folder of that name write ./{text}")


def open_group(url: str, mode: Literal["r", "r+"]) -> zarr.Group | None:
    """The zarr group at `url`; None where there is none. Raises `EbmtrajError` where it can't be opened."""
    if _is_local(url) and Path(url).exists() and not Path(url).is_dir():
        raise EbmtrajError(f"{url} is a file, not a trajectory store; check the path")
    try:
        return zarr.open_group(url, mode=mode, zarr_format=3)
    except (FileNotFoundError, GroupNotFoundError):
        return None
    except (OSError, ImportError) as error:  # no rights, no connection, or no package for this kind of URL
        raise EbmtrajError(f"can't open store {url}: {reason_of(error)}") from None
    except Exception as error:  # zarr and fsspec raise many kinds
        raise EbmtrajError(f"store {url}: can't be opened or its attributes are damaged ({reason_of(error)})") from None


def occupied(url: str) -> bool:
    """Whether anything stands at `url`; raises `EbmtrajError` where that can't be seen."""
    try:
        if _is_local(url):
            here = Path(url)
            return here.exists() and not all(each.name == LOCK or _PARTIAL.search(each.name) for each in here.iterdir())
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, root = url_to_fs(url)
        return system.exists(root) and (not system.isdir(root) or bool(system.ls(root)))
    except (OSError, ValueError, ImportError) as error:
        raise EbmtrajError(f"can't look into {url}: {reason_of(error)}") from None


def format_of(url: str, group: zarr.Group) -> Any:
    """What a group's attributes call its format; None where they don't. Raises `EbmtrajError` where they can't be read."""
    try:
        return group.attrs.asdict().get("format")
    except Exception as error:
        raise EbmtrajError(f"store {url}: attributes can't be read ({reason_of(error)})") from None


def our_attributes(url: str, group: zarr.Group, *, believe: bool = False) -> dict[str, Any]:
    """A store's attributes; raises `EbmtrajError` where it is not ours, damaged or of a newer schema.

    With `believe`, those that are not what their seal says are given all the same, with None for a seal.
    """
    if format_of(url, group) != FORMAT:
        raise EbmtrajError(f"{url} is a zarr group, but not a trajectory store; check the path")
    attributes: dict[str, Any] = group.attrs.asdict()
    schema = attributes.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise EbmtrajError(f"store {url}: attribute schema is {schema!r}; the attributes are damaged")
    if schema > SCHEMA:
        raise EbmtrajError(f"store {url} has schema {schema}, this ebmtraj reads up to {SCHEMA}; update ebmtraj")
    if not seal_holds(attributes):
        if not believe:
            raise EbmtrajError(
                f"store {url}: attributes are damaged or were edited: zarr.json is not what its seal says; restore it, "
                f"or keep what can be kept: ebmtraj data repair {url} NEW.zarr"
            )
        attributes["seal"] = None
    return attributes


def with_seal(attributes: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    """Attributes with a seal over all of them: what is known of the arrays, and a sha256 of that and of the attributes."""
    plain: dict[str, Any] = json.loads(json.dumps({key: value for key, value in attributes.items() if key != "seal"}))
    return {**plain, "seal": {**parts, "attributes": of_json([plain, json.loads(json.dumps(parts))])}}


def seal_holds(attributes: Mapping[str, Any]) -> bool:
    """Whether attributes are those that were sealed; old stores have no seal."""
    seal = attributes.get("seal", {})
    if "seal" not in attributes:
        return True
    plain = {key: value for key, value in attributes.items() if key != "seal"}
    parts = {key: value for key, value in seal.items() if key != "attributes"} if isinstance(seal, dict) else {}
    return isinstance(seal, dict) and seal.get("attributes") == of_json([plain, parts])


def is_whole(array: zarr.Array[Any], rows: int, *, complete: bool) -> bool:
    """Whether an array can be one of which so many rows are committed: longer by whole shards, or trimmed when complete.

    Otherwise the attributes, or the array's own zarr.json, are of another version of the store.
    """
    held, step = array.shape[0], (array.shards or array.chunks)[0]
    return held >= rows and (held % step == 0 or (complete and held == rows))


def member_array(group: zarr.Group, url: str, name: str) -> zarr.Array[Any]:
    """An array of the group; raises `EbmtrajError` where it is missing or damaged."""
    try:
        array = group[name]
    except Exception as error:
        raise EbmtrajError(f"store {url}: array {name} is missing or damaged ({reason_of(error)})") from None
    if not isinstance(array, zarr.Array):
        raise EbmtrajError(f"store {url}: {name} is not an array; the store is damaged")
    return array


@contextlib.contextmanager
def writing(url: str) -> Iterator[None]:
    """Turn whatever zarr or the file system raises into one `EbmtrajError`, and let Ctrl-C wait for the write's end."""
    try:
        with ctrl_c_later():  # zarr's pending tasks complain when they are left behind
            yield
    except EbmtrajError:
        raise
    except OSError as error:
        raise EbmtrajError(
            f"can't write store {url}: {error.strerror or reason_of(error)}; free the disk or mend the rights"
        ) from None
    except Exception as error:
        raise EbmtrajError(f"can't write store {url}: {reason_of(error)}") from None


def reason_of(error: BaseException) -> str:
    """Kind and message of an error, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def drop_partial_files(url: str) -> None:
    """Remove what a killed writer left of files that it had not yet renamed."""
    if _is_local(url):
        for folder in ("state", "action", "episode", "."):
            walk = Path(url, folder).glob("*" if folder == "." else "**/*")
            for file in walk:
                if _PARTIAL.search(file.name):
                    file.unlink(missing_ok=True)
