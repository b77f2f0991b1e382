"""Fitting guides: :func:`~pyrobnn.inference.fit.fit`, the :class:`~pyrobnn.inference.elbo.ELBO`, callbacks, optimisers."""
