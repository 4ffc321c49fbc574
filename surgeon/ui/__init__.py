"""The terminal interface: a view of a Session and of one worker process. Loads no torch."""
