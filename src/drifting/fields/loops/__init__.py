"""The inner loops of `compiled_drifts`, which imports them when they are first needed: they need numba, the extra `fast`."""
