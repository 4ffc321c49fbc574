"""Where torch is: jobs, loading, scores, training, evaluation, verification.

May import everything but `client`, `session`, `cli` and `ui`.
Each package below has one duty; what a job needs of several is put together in `replay` and `jobs`.
"""
