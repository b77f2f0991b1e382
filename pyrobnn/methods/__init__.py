"""The methods: one file per published system, and the road they share."""
