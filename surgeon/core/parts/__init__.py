"""What a layer can be cut into: experts, neurons of its MLP, key-value heads; which slices of which tensors each is.

May import `core/checkpoint` and `core/structure`.
A new kind of part gets a file here and a row in `divide` and in `counts`.
"""
