"""The demo model: fetched and converted once per machine.

May import `core`; transformers only in the process that converts.
Another demo model, or recipes that ship with the package, go here.
"""
