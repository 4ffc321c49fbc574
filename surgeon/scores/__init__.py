"""Scores, one per file: the mathematics only. Torch is imported inside functions. Found by listing this package."""
