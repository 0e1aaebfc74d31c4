"""What removed channels gave, given back: biases in closed form, and batch-norm statistics from data."""
