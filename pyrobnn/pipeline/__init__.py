"""Pipelines from a dense to a compact network: :class:`~pyrobnn.pipeline.method.Method`, stages, state, epochs."""
