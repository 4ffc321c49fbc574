"""Scores, one per file: the mathematics only, torch imported inside functions. Found by listing this package.

May import `core`.
A new score is one file here; a new kind of pass goes to `surgeon/backend/scoring`.
"""
