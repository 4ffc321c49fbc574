"""Metrics on the live model: perplexity, choices, exact match, preferences, tasks of lm-eval.

May import `model`, `data`, `training` and the score cache.
A new metric: its arithmetic in `core/recipe/evaluation`, what the model is asked in `items`.
"""
