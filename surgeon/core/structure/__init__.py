"""How a model is built: stacks of layers, roles of tensors, and what each config field says about each layer.

May import `core/checkpoint`.
A new way in which a config describes layers goes here; which family uses it is said in `surgeon/architectures`.
"""
