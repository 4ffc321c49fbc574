"""One file per command; each holds a click command called `command`.

May import `cli`, `client`, `session` and `core`, never another command.
A new command is one file here and one line in `cli/group.py`. Operations need none: theirs are generated.
"""
