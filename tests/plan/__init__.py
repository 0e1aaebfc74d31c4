"""Plans: made for a ratio or a target, for named channels or in steps, printed and read."""
