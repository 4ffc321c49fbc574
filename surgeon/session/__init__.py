"""A session: a model, its recipe while it is edited, scores; what a front end may do with them, and jobs for a worker.

May import every layer below the client, but neither torch nor a front end.
Edits of the recipe: `editing.py`; opening, saving and jobs: `session.py`.
"""

from surgeon.session.session import Preview, Session

__all__ = ["Preview", "Session"]
