"""How one state differs from the next, field by field: differences, wrapped angles and rotation vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ebmtraj.fields import Field, total_size

Rotation = Literal["world", "body", "quaternion"]  # how a quaternion's change is written, see `Increments`


FEW = 4096  # numbers


def _product() -> Tensor:
    """Which products p_i q_j make up the entries of a Hamilton product, and their signs, `(16, 4)`."""
    table = torch.zeros(4, 4, 4)
    for i, j, entry, sign in (
        *((0, 0, 0, 1), (1, 1, 0, -1), (2, 2, 0, -1), (3, 3, 0, -1)),
        *((0, 1, 1, 1), (1, 0, 1, 1), (2, 3, 1, 1), (3, 2, 1, -1)),
        *((0, 2, 2, 1), (1, 3, 2, -1), (2, 0, 2, 1), (3, 1, 2, 1)),
        *((0, 3, 3, 1), (1, 2, 3, 1), (2, 1, 3, -1), (3, 0, 3, 1)),
    ):
        table[i, j, entry] = sign
    return table.reshape(16, 4)


_PRODUCT = _product()


def quaternion_multiply(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product of quaternions (w, x, y, z), `(..., 4), (..., 4) -> (..., 4)`."""
    if max(p.numel(), q.numel()) <= FEW:  # three calls instead of forty, of which few quaternions take all the time
        return (p.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2) @ _PRODUCT.to(p)
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        (
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ),
        dim=-1,
    )


def quaternion_exp(rotation: Tensor) -> Tensor:
    """Unit quaternion of a rotation vector in radians, `(..., 3) -> (..., 4)`."""
    half = 0.5 * rotation
    angle = torch.linalg.vector_norm(half, dim=-1, keepdim=True)
    return torch.cat((torch.cos(angle), half * torch.sinc(angle / torch.pi)), dim=-1)


def quaternion_log(q: Tensor) -> Tensor:
    """Shortest rotation vector in radians of a unit quaternion, `(..., 4) -> (..., 3)`, norm at most pi."""
    w, xyz = q[..., :1], q[..., 1:]
    sign = torch.where(w < 0, -1.0, 1.0)  # q and -q turn alike; take the shorter way
    sine = torch.linalg.vector_norm(xyz, dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, w.abs())
    small = sine < 1e-7
    return sign * xyz * torch.where(small, 2.0, angle / torch.where(small, 1.0, sine))


def quaternion_conjugate(q: Tensor) -> Tensor:
    """The inverse rotation of a unit quaternion, `(..., 4) -> (..., 4)`."""
    return torch.cat((q[..., :1], -q[..., 1:]), dim=-1)


def rotation_matrix(q: Tensor) -> Tensor:
    """Rotation matrix, row by row, of a unit quaternion, `(..., 4) -> (..., 9)`; the same for q and -q."""
    w, x, y, z = q.unbind(-1)
    return torch.stack(
        (
            1 - 2 * (y * y + z * z),
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            2 * (x * y + w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z - w * x),
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            1 - 2 * (x * x + y * y),
        ),
        dim=-1,
    )


def cube_features(q: Tensor) -> Tensor:
    """What tells poses of a cube apart and is the same for its 24 symmetric ones, `(..., 4) -> (..., 24)`.

    First the 15 moments sum_k x_k^i y_k^j z_k^l, i + j + l = 4, of the cube's axes k in the world, which are smooth in q and
    tell all distinct poses apart. Then the rotation matrix, turned by the symmetries to be nearest to the identity, which
    resolves small turns better but jumps half-way between two symmetric poses.
    """
    matrix = rotation_matrix(q)
    x, y, z = matrix.unflatten(-1, (3, 3)).unbind(-2)  # each (..., 3): one entry an axis of the cube
    xs, ys, zs = ([torch.ones_like(v), v, v * v, v * v * v, v * v * v * v] for v in (x, y, z))  # `**` is ten times slower
    moments = [(xs[i] * ys[j] * zs[4 - i - j]).sum(-1) for i in range(5) for j in range(5 - i)]
    symmetries = CUBE_SYMMETRIES.to(q)
    nearest = symmetries[(matrix @ symmetries.mT.reshape(24, 9).T).argmax(-1)]
    reduced = (matrix.unflatten(-1, (3, 3)) @ nearest).flatten(-2)
    return torch.cat((torch.stack(moments, dim=-1), reduced), dim=-1)


def _cube_symmetries() -> Tensor:
    """The 24 rotation matrices `(24, 3, 3)` that map a cube onto itself: signed permutations of determinant 1."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = torch.zeros(3, 3)
            matrix[torch.arange(3), torch.tensor(order)] = torch.tensor(signs)
            if torch.linalg.det(matrix) > 0:
                found.append(matrix)
    return torch.stack(found)


CUBE_SYMMETRIES = _cube_symmetries()


def _towards(q: Tensor, previous: Tensor) -> Tensor:
    """q or -q, whichever is nearer to the `previous` one, both `(..., 4)`."""
    return torch.where((q * previous).sum(-1, keepdim=True) < 0, -q, q)


def _feature_size(field: Field) -> int:
    if field.kind == "quaternion":
        return 24 if field.symmetry == "cube" else 9
    return field.size + sum(field.turning()) + len(field.couplings or ())


class Increments:
    """Maps between pairs of states and their increment: `between(s, s')` and its inverse `apply(s, d)`.

    A quaternion's increment is, by `rotation`, the rotation vector w (radians) with q' = exp(w) q in the "world" frame, or
    with q' = q exp(w) in the "body" frame, so that an increment has one number less for each quaternion; or, for
    "quaternion", the difference d of its four numbers, q' = (q + d) / |q + d|. Every applied increment gives a unit
    quaternion whose sign is continuous in time.
    """

    def __init__(self, fields: Sequence[Field], rotation: Rotation = "world") -> None:
        self.fields, self.rotation = tuple(fields), rotation
        self.state_size = total_size(fields)
        turn = 4 if rotation == "quaternion" else 3
        self.size = sum(turn if field.kind == "quaternion" else field.size for field in fields)
        self.feature_size = sum(_feature_size(field) for field in fields)
        self._turning = [torch.tensor(field.turning()) for field in fields]  # which entries are seen as sine and cosine
        self._plan: list[tuple[str, slice, slice]] = []
        s = d = 0
        for field in fields:
            width = turn if field.kind == "quaternion" else field.size
            kind = field.kind if field.kind in ("quaternion", "angle") else "plain"
            self._plan.append((kind, slice(s, s + field.size), slice(d, d + width)))
            s, d = s + field.size, d + width

    def turn(self) -> slice | None:
        """Where an increment holds the world-frame rotation vector of the state's one quaternion, if it does."""
        found = [width for kind, _, width in self._plan if kind == "quaternion"]
        return found[0] if len(found) == 1 and self.rotation == "world" else None

    def names(self) -> list[str]:
        """One name an entry of the increment."""
        labels: list[str] = []
        for field, (kind, _, place) in zip(self.fields, self._plan, strict=True):
            width = place.stop - place.start
            usual = "wxyz" if kind == "quaternion" and width == 4 else "xyz"
            given = field.entries if field.entries and len(field.entries) == width else tuple(usual[:width])
            labels += [f"{field.name}.{given[i] if i < len(given) else i}" for i in range(width)]
        return labels

    def features(self, state: Tensor) -> Tensor:
        """The state as a network best sees it, `(..., S) -> (..., F)`.

        Quaternions become rotation matrices: world-frame turning depends on the cube's axes in the world, which are products
        of quaternion entries; a matrix holds them, and it does not tell q from -q. Of a field's angles, those that turn
        without end follow the others as all their sines, then all their cosines: a whole turn on, the pose is the same. A
        field's couplings come before its entries, and a cube's symmetric poses are not told apart (`cube_features`).
        """
        parts: list[Tensor] = []
        for field, (kind, place, _), turning in zip(self.fields, self._plan, self._turning, strict=True):
            part = state[..., place]
            for coupling in field.couplings or ():
                weights = zip(coupling.entries, coupling.weights, strict=True)
                parts.append(torch.stack([weight * part[..., entry] for entry, weight in weights]).sum(0).unsqueeze(-1))
            if kind == "quaternion":
                parts.append(cube_features(part) if field.symmetry == "cube" else rotation_matrix(part))
            elif turning.any():
                angle = part[..., turning]
                parts += [part[..., ~turning], torch.sin(angle), torch.cos(angle)]
            else:
                parts.append(part)
        return torch.cat(parts, dim=-1)

    def between(self, state: Tensor, following: Tensor) -> Tensor:
        """Increment from one state to the next, `(..., S), (..., S) -> (..., D)`."""
        parts = []
        for kind, place, _ in self._plan:
            a, b = state[..., place], following[..., place]
            if kind == "quaternion":
                parts.append(self._turn(a, b))
            elif kind == "angle":
                parts.append(torch.remainder(b - a + torch.pi, 2 * torch.pi) - torch.pi)
            else:
                parts.append(b - a)
        return torch.cat(parts, dim=-1)

    def apply(self, state: Tensor, increment: Tensor) -> Tensor:
        """The state that lies this increment ahead, `(..., S), (..., D) -> (..., S)`."""
        parts = []
        for kind, place, width in self._plan:
            a, d = state[..., place], increment[..., width]
            if kind == "quaternion":
                parts.append(self._turned(a, d))
            else:
                parts.append(a + d)
        return torch.cat(parts, dim=-1)

    def _turn(self, a: Tensor, b: Tensor) -> Tensor:
        """The increment from quaternion a to b, `(..., 4), (..., 4) -> (..., 3 or 4)`."""
        if self.rotation == "world":
            return quaternion_log(quaternion_multiply(b, quaternion_conjugate(a)))
        if self.rotation == "body":
            return quaternion_log(quaternion_multiply(quaternion_conjugate(a), b))
        return _towards(b, a) - a

    def _turned(self, a: Tensor, d: Tensor) -> Tensor:
        """The unit quaternion that this increment leads to, the inverse of `_turn`."""
        if self.rotation == "quaternion":
            q = a + d
            norm = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
            return _towards(torch.where(norm > 1e-6, q / norm.clamp_min(1e-6), a), a)
        turn = quaternion_exp(d)
        q = quaternion_multiply(turn, a) if self.rotation == "world" else quaternion_multiply(a, turn)
        return q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)

    def project(self, state: Tensor, previous: Tensor | None = None) -> Tensor:
        """Make every quaternion unit, and of the same sign as in `previous` where that is given, `(..., S) -> (..., S)`."""
        parts = []
        for kind, place, _ in self._plan:
            part = state[..., place]
            if kind == "quaternion":
                norm = torch.linalg.vector_norm(part, dim=-1, keepdim=True)
                fallback = torch.zeros_like(part)
                fallback[..., 0] = 1.0
                part = torch.where(norm > 1e-6, part / norm.clamp_min(1e-6), fallback)
                if previous is not None:
                    part = _towards(part, previous[..., place])
            parts.append(part)
        return torch.cat(parts, dim=-1)
