"""What a cut keeps, what goes along with it, and that it happens whole or not at all."""
