"""Whole networks, pruned and proved: as people write them, as libraries have them, and at random."""
