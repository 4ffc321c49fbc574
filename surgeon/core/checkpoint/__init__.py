"""What lies on disk, known from `config.json` and shard headers alone.

May import `errors`.
Other layouts of files, other ways to name a model, and what file systems lack go here; what tensors mean goes to
`core/structure`.
"""
