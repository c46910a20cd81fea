"""The opponents of the transition energy, one file a model: same interface, same data, same training loop."""
