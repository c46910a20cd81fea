"""Fields as JSON: what is written comes back, what is no field is refused in one line."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ebmtraj.envs.hand_cube import state_fields
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Coupling, Field, fields_from_json, fields_to_json

LIMITS: dict[str, Any] = {"low": (-1.0, -1.0, -math.inf), "high": (1.0, 2.0, math.inf)}
PAIR = Coupling("tendon", (1, 0), (1.0, -0.5))
FIELDS = (
    Field("joints", 3, "angle", "rad", entries=("a", "b", "c"), couplings=(PAIR, Coupling("one", (0,), (2.0,))), **LIMITS),
    Field("cube", 4, "quaternion", symmetry="cube"),
    Field("ball", 4, "quaternion"),
    Field("sums", 2, couplings=(Coupling("sum", (0, 1), (1, 1)),)),
    Field("none", 2, couplings=()),
)


def test_fields_come_back_from_json() -> None:
    for fields in (FIELDS, state_fields()):
        text = json.dumps(fields_to_json(fields), allow_nan=False)
        assert fields_from_json(json.loads(text)) == tuple(fields)
    rows = fields_to_json(FIELDS)
    assert rows[0]["couplings"][0] == {"name": "tendon", "entries": [1, 0], "weights": [1.0, -0.5]}
    assert rows[1]["symmetry"] == "cube"
    assert not {"couplings", "symmetry"} & rows[2].keys()  # as stores had it before there were any


def coupled(**changes: Any) -> dict[str, Any]:
    coupling = {"name": "t", "entries": [0, 1], "weights": [1.0, -1.0], **changes}
    return {"name": "x", "size": 2, "couplings": [{k: v for k, v in coupling.items() if v is not None}]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"name": "x", "size": 2, "symmetry": "cube"}, "symmetry 'cube' of a plain"),
        ({"name": "x", "size": 4, "kind": "quaternion", "symmetry": "ball"}, "may have symmetry 'cube'"),
        ({"name": "x", "size": 4, "kind": "quaternion", "symmetry": ["cube"]}, "may have symmetry 'cube'"),
        ({"name": "x", "size": 4, "kind": "quaternion", "symmetry": ""}, "may have symmetry 'cube'"),
        (coupled(entries=[0, 2]), "coupling 't' names entry 2; it has 0 to 1"),
        (coupled(entries=[-1, 0]), "names entry -1"),
        (coupled(entries=[0, 1.0]), "not all whole numbers"),
        (coupled(entries=[0, True]), "not all whole numbers"),
        (coupled(entries=[0, "1"]), "not all whole numbers"),
        (coupled(entries=[0]), "1 entries and 2 weights"),
        (coupled(entries=[], weights=[]), "0 entries and 0 weights"),
        (coupled(weights=[1.0, math.nan]), "not all finite numbers"),
        (coupled(weights=[1.0, math.inf]), "not all finite numbers"),
        (coupled(weights=[1.0, "2"]), "not all finite numbers"),
        (coupled(weights=[1.0, None]), "not all finite numbers"),
        (coupled(name=7), "a coupling's name is 7"),
        (coupled(name=""), "a coupling's name is ''"),
        (coupled(entries=None), "not a field description"),
        (coupled(entries=3), "not a field description"),
        (coupled(unit="m"), "not a field description"),
        ({"name": "x", "size": 2, "couplings": "ab"}, "not a field description"),
        ({"name": "x", "size": 2, "couplings": [3]}, "not a field description"),
        ({"name": "x", "size": 2, "couplings": {"t": 1}}, "not a field description"),
        ({"name": "x", "size": 2, "couplings": 7}, "not a field description"),
        ({**coupled(), "kind": "angle"}, "entry 0, which turns without end; give it limits"),
        ({**coupled(), "size": 4, "kind": "quaternion"}, "turns without end"),
        ({"name": "x", "size": 2, "colour": 7}, "not a field description"),
    ],
)
def test_what_is_no_field_is_refused_in_one_line(row: dict[str, Any], words: str) -> None:
    with pytest.raises(EbmtrajError) as caught:
        fields_from_json([row])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
