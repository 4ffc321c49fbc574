"""Objectives of the learning steps: one per file, the mathematics of a loss. Torch is imported inside functions."""
