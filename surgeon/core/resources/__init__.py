"""What work takes in memory, bytes and time, told before it is done: arithmetic on plans. No torch, no weights.

May import the other packages of `core`; they may not import it.
A new kind of work gets a function in `estimates`; what a machine can do is in `machine`.
"""
