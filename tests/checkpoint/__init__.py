"""Files: what is saved comes back bit by bit, and what is wrong is refused with nothing changed."""
