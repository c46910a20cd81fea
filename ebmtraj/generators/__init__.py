"""Generators whose latent space an energy can tilt."""
