"""Criteria: scores of channels and rules that turn a posterior (or a trained network) into a plan."""
