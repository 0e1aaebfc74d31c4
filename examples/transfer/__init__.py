"""What ``compute_optimal_transfer.py`` is made of: a network, images, a page."""
