"""A model without its numbers: what surrounds it, and what it keeps elsewhere."""
