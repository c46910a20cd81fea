"""Torch modules with no idea of energies."""
