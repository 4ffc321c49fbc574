"""Other models whose layers are to stand among the base's.

May import `core/structure` and below.
What makes layers of two models fit each other goes here.
"""
