"""Where torch is: jobs, loading, scores, training, evaluation, verification.

May import everything but `client`, `session`, `cli` and `ui`.
Each room below has one duty; what a job needs of several rooms is put together in `replay` and `jobs`.
"""
