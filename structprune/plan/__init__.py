"""The plan: what was decided, how it is made, and the search for targets."""
