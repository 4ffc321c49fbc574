"""The recipe: its steps, its YAML, what an operation and an objective declare, and how steps fold over a draft.

May import everything else in `core` but jobs and journal.
A new field of the recipe goes here; a new operation or objective goes to its own package.
"""
