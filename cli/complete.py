"""Values that the shell offers. They stand here, as registries take seconds to import; a test compares them."""

from __future__ import annotations

from collections.abc import Callable

TRANSITION_MODELS = ("energy", "fc", "gaussian", "ensemble", "mdn", "edm", "flow", "field", "gru", "ratio")
TRANSITION_OBJECTIVES = ("dsm", "cd", "icd")
IMAGE_MODELS = (
    *("energy", "concept", "pair", "field", "jem", "jem-cd", "classifier", "vae"),
    *("gaussian", "class-gaussian", "gmm", "svm"),
)
IMAGE_OBJECTIVES = ("dsm", "pcd")
JOINT_MODELS = ("jem", "jem-cd", "classifier")
GENERATORS = ("vae", "glf", "glow", "flow", "two-stage", "vae-flow")
TILT_OBJECTIVES = ("ratio", "likelihood", "both")
PRIORS = ("energy", "field")
CLONE_LABELS = ("none", "axis", "goal")
SPLITS = ("train", "validation", "test")
POLICIES = ("random", "trained", "to-goal")
ACTION_RULES = ("none", "every-4th-random", "twice")
IMPORTS, EXPORTS = ("minari", "diffusion-policy", "npz"), ("minari", "lerobot", "npz")
DEVICES = ("auto", "cpu", "cuda")


def among(*values: str) -> Callable[[str], list[str]]:
    """Offers those of the values that begin with what was typed."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]
