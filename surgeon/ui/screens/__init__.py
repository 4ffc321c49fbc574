"""The main screen, the dialogs and the text screens.

May import everything of `surgeon.ui` but `app`; a dialog knows no main screen, but results in what the user chose.
A new dialog or text screen: a file here; a new method for a command: `main_screen.py`; jobs and files: `actions`.
"""
