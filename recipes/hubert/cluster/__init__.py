"""Fit a unit model (k-means) on streamed features of a manifest."""
