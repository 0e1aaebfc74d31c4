"""Ambiguous operators and sizes that modules hold, found out by trials."""
