"""Whole families of published networks, pruned and judged: ``make zoo``."""
