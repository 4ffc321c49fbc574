"""A plan becomes files. Loads no torch: arithmetic is asked of a function that it is given.

May import `core` and `architectures`.
What an export holds beside its shards goes to `checkpoint_writer`.
"""
