"""Operators: the contract of every rule, and what users add."""
