"""Objectives of the learning steps, one per file: the mathematics of a loss, torch imported inside functions.

May import `core`.
A new objective is one file here.
"""
