"""Options that several commands share, declared once as a dataclass."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

ALONE = inspect.Parameter.KEYWORD_ONLY
NEEDED = inspect.Parameter.empty


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command, of which a parameter that is a dataclass stands on the command line as that one's fields, as options.

    They come after the command's own ones, but what must be given comes first.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    groups: dict[str, list[str]] = {}
    own: list[inspect.Parameter] = []
    shared: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind: Any = hints[parameter.name]
        if dataclasses.is_dataclass(kind):
            fields = dataclasses.fields(kind)
            groups[parameter.name] = [field.name for field in fields]
            meant = typing.get_type_hints(kind, include_extras=True)
            for field in fields:
                default = NEEDED if field.default is dataclasses.MISSING else field.default
                shared.append(inspect.Parameter(field.name, ALONE, default=default, annotation=meant[field.name]))
        else:
            own.append(parameter.replace(kind=ALONE, annotation=kind))
    options = sorted([*own, *shared], key=lambda option: option.default is not NEEDED)

    @functools.wraps(command)
    def called(**given: Any) -> None:
        made = {name: hints[name](**{field: given.pop(field) for field in fields}) for name, fields in groups.items()}
        command(**given, **made)

    called.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    called.__annotations__ = {option.name: option.annotation for option in options}
    return called
