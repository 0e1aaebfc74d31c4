"""Random networks of the code that people write: the second generator, its blocks and its judge."""
