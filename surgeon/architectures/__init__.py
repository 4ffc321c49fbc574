"""What differs between model families, as data: one family per file, found by listing this package.

May import `core`.
A family that needs more than tensor names and counts gets a file here.
"""
