"""Uses of a fitted posterior: a Bayesian network around the compact one, draws, diagnostics."""
