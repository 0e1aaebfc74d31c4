"""Slices, the tracer with its rules, and the groups of channels that come out of them."""
