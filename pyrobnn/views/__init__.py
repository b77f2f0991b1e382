"""What a person sees of a posterior: ArviZ objects and pictures, made from plain arrays."""
