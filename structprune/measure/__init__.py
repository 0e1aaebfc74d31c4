"""What a network costs when it runs."""
