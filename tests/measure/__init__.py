"""Counting and timing, of any model."""
