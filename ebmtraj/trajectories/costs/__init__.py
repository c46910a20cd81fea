"""Task costs: named terms over planned states and actions, and sums of them."""

from ebmtraj.trajectories.costs.task import TERMS, TaskCost, parse_task
from ebmtraj.trajectories.costs.term import Path, Term

__all__ = ["TERMS", "Path", "TaskCost", "Term", "parse_task"]
