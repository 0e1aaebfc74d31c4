"""Pruned models in files: safetensors with the plan inside, whole or in shards, without pickle."""
