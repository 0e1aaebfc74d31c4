"""Pruned models in the tools that people use with them: the real libraries, on two small networks."""
