"""The inner loops of `compiled`, which imports them when they are first needed: they need numba, the extra `fast`."""
