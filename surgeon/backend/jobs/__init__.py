"""Jobs, one per file: what a front end can ask of a worker.

May import all packages of the backend. `dispatch` imports a job when it is asked for.
A new job is one file here and one struct in `surgeon/core/jobs.py`.
"""
