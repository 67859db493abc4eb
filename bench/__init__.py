"""How fast the product is, as ratios of CPU time to a floor of its own, measured side by side in one run."""
