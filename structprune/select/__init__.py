"""Which channels go: options, scores, partitions and budgets."""
