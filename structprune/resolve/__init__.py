"""Finds, on the meta device, how every ambiguous operator must be read so that the cut network is right."""
