"""What a cut is, and the only code that changes a model."""
