"""Which channels go: importance, budget, and the plan that says so."""
