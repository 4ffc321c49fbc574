"""What differs between model families, as data: one family per file, found by listing this package."""
