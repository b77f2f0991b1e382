"""Summaries of a posterior: :class:`~pyrobnn.summary.types.Posterior`, read from a guide by `summarize`."""
