"""A model without its numbers: copies on the meta device, and how operators run there."""
