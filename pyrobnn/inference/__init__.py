"""Fitting guides: :func:`~pyrobnn.inference.fit.fit` with the :class:`~pyrobnn.inference.elbo.ELBO`, events, optimisers."""
