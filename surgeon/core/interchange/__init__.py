"""What other tools' config files and a recipe have in common: trainable parameters, adapted modules, orders of layers.

May import `core/recipe` and below.
The formats themselves are in `surgeon/config_formats`; what two of them share goes here.
"""
