"""The passes that feed scores, each run once for all scores that asked, and the cache of what was measured.

May import `model`, `data` and, for scores that are learned, `training`.
A new kind of pass goes here; the mathematics of a score goes to `surgeon/scores`.
"""
