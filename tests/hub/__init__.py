"""Models whose library builds them from a config."""
