"""Metrics of networks and predictive distributions: accuracy, NLL, calibration, latency."""
