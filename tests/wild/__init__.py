"""A thousand random networks of the second generator, judged; ``python -m tests.wild``."""
