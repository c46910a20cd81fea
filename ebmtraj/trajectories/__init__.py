"""Transition models, their baselines, and rollouts over many steps."""
