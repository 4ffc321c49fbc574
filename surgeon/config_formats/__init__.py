"""Config files of other tools, one format per file, found by listing this package.

Each is read into steps and written from a plan. May import `core`.
A new format is one file here; `import-config`, `export-config` and `run` follow from it.
"""
