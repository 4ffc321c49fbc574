"""Operations on a draft, one per file, found by listing this package."""
