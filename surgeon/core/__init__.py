"""Pure data: what a model is and what was decided about it. No torch, no weights."""
