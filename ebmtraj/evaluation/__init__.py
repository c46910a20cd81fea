"""Metrics of rollouts against the truth: pure functions of arrays, each with its reference."""
