"""Pruning measured on networks that were really trained: run by hand, results in ``docs/quality.md``."""
