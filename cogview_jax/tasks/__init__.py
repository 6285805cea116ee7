"""What a run is of: its config, its data, what it trains and leaves."""
