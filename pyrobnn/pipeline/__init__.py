"""How a method goes from a dense network to a compact one: :class:`~pyrobnn.pipeline.method.Method`, its rounds and epochs."""
