"""Slices and their coupling."""
