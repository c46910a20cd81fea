"""The opponents of image energies, one file a kind: same interface, same data, same run directories."""
