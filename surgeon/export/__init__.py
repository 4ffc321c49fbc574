"""A plan becomes files. Loads no torch: what needs arithmetic is asked of a function it is given."""
