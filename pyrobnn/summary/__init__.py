"""What is kept of a posterior: :class:`~pyrobnn.summary.types.Posterior`, read off a guide by `summarize`."""
