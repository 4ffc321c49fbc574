"""Learning steps: the training loop, what is trained, masks, gates, token rewards, resuming, results by address.

May import `model` and `data`.
A new procedure is one file, named in `learning_steps`; a new loss goes to `surgeon/objectives`.
"""
