"""Losses, the training loop and its guard."""
