"""What lies on disk, known from `config.json` and shard headers alone.

May import `errors`.
Other layouts of files, and other ways to name a model, go here; what tensors mean goes to `core/structure`.
"""
