"""The model as it will be: the draft, and every output tensor with where its bytes come from.

May import `core/checkpoint` and `core/structure`.
A new source of a tensor goes to `expressions`, a new thing that a draft can say to `draft`.
"""
