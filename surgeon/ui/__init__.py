"""The terminal interface (Textual): a view of one session and of one worker process.

May import `surgeon.session`, `surgeon.client` and the layers below them; loads no torch.
A new key or `:` command: `commands.py`; the syntax of the `:` line: `command_line.py`; colours: `theme.py`.
"""
