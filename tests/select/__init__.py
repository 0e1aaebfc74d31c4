"""Which channels go."""
