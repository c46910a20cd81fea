"""Energy-based models of motion: learn a transition energy, generate long futures, plan with it."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# envs/, datasets/ and cli/ stand at the repository's root; the links beside this file lead there. Where links were lost
# (Windows, some archives) this finds them all the same; in an installed package both lines change nothing.
if not (_Path(__file__).parent / "datasets" / "store.py").exists():
    __path__.append(str(_Path(__file__).parent.parent))
