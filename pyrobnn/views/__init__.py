"""Plots and ArviZ objects of a posterior, made from plain arrays."""
