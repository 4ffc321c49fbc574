"""Data as tokens: one reader of rows, calibration text, training examples.

May import `core` and `backend/model`.
A new form of rows goes to `rows`; a new source of rows beside it.
"""
