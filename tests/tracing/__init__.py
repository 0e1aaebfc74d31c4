"""Models followed operator by operator."""
