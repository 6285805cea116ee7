"""How good a bundle is: benchmarks, reports, contact sheets."""
