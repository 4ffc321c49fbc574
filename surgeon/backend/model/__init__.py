"""The loaded model: loading, streaming, running its layers one by one, applying a draft to it, adapters.

May import `core`, `architectures`, and `device` and `out_of_memory` of the backend.
What is done to a model in memory goes here; what is measured on it goes to `scoring` or `evaluation`.
"""
