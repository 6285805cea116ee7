"""A bundle's programs as StableHLO, with their weights beside them."""
