"""The Langevin core and what belongs to it; energies are callables here."""
