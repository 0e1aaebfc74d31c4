"""On numbers: a pruned network gives what the dense one gives with those channels masked."""
