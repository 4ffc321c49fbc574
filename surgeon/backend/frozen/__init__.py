"""Weights that nobody trains: held once, as they are stored, by all models that are made of them.

May import `model`.
How they are held goes to `frozen_weight`; which of a model's weights are, and who shares them, to `frozen_modules`.
"""
