"""``structprune-report``: what it says, what it opens, what it refuses."""
