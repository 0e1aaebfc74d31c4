"""Compute-optimal transfer: from the meter to the advice."""
