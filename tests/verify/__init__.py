"""Wrong cuts are caught: by the run after a cut, by the proof, by the oracle."""
