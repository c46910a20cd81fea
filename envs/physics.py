"""MuJoCo, imported without a rendering backend: one that is asked for and missing must not stop the physics.

MuJoCo reads MUJOCO_GL when it is first imported and fails there if that library is missing; the renderer chooses a
backend by itself, when it draws.
"""

import os

_backend = os.environ.pop("MUJOCO_GL", None)
try:
    import mujoco
    import mujoco.rollout
finally:
    if _backend is not None:
        os.environ["MUJOCO_GL"] = _backend

__all__ = ["mujoco"]
