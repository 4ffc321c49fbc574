"""What the interface shows, as plain data: rows, marks, the pending step, scores, the running job.

May import `surgeon.session`, `surgeon.client` and the layers below them, but neither Textual nor the rest of the ui.
What happens when something is pressed goes here; why a command is refused: `availability.py`.
"""
