"""One file per published system: a :class:`~pyrobnn.pipeline.method.Method`, found by name in `registry`."""
