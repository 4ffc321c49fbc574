"""What a score declares and what it is once measured: kinds, requests, costs, layer sequences, overlap of rankings.

May import `core/plan` and below.
Mathematics of a score goes to `surgeon/scores`; running it goes to `surgeon/backend/scoring`.
"""
