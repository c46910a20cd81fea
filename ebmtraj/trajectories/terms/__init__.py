"""The named terms that task costs are sums of."""
