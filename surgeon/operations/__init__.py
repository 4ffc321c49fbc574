"""Operations on a draft, one per file, found by listing this package.

May import `core`.
A new operation is one file here; its fields are the YAML schema, the command's options and the form on screen.
"""
