"""Where torch is: the worker, loading, arithmetic on tensors, the pass engine, verification."""
