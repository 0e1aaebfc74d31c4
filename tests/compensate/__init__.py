"""What removed channels gave, given back to the layers that read them."""
