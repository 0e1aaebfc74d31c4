"""A model followed operator by operator: records, and the groups of channels that come out of them."""
