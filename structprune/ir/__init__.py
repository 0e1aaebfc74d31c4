"""Plain data: slices and their coupling, what a trace records, and operator schemas."""
