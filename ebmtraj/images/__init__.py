"""Image energies and joint classifiers, their baselines and what they are good for."""
