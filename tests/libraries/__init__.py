"""Architectures from other libraries, pruned and judged as the zoo's networks are: ``make libraries``."""
