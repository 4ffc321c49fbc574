"""Which layers and which matrices: the grammar of selections, and what a ranked one comes to.

May import `core/scoring`, `core/plan` and below.
New words of a selection go here.
"""
