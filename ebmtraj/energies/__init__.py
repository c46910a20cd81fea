"""Energies: modules that give one number to each element of a batch."""
