"""Pure data: what a model is and what was decided about it. No torch, no weights.

May import nothing of surgeon but `errors`. Everything else may import it.
A kind of data that crosses rooms goes here, in the room of its kind; what only one front end needs does not.
"""
