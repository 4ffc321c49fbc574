"""Data as tokens: one reader of rows, calibration text, training examples.

May import `core` and `backend/model`. No torch above `tokens`, and `datasets` only where a table or the hub is read.
sources -> plain rows -> forms -> Row -> chat_template -> pieces of text -> tokens -> calibration, examples, items.
A new form of rows is a line of the table in `forms`; a new source, a file beside `table_files` and a line in `sources`.
"""
