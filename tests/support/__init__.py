"""What several test files share: networks, the oracle, the contract of the rules."""
