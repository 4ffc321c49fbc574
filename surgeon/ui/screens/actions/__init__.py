"""What the main screen does with dialogs and the worker: jobs, scores, training, files, the typed line.

May import `main_layout` and the dialogs, but not `main_screen`, which creates the actions.
A new kind of job: one file here and one line in `main_screen_actions.py`.
"""
