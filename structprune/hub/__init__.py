"""Configs that build the pruned network: what a library that saves a model as config and weights needs."""
