"""Refine units round by round: features, clusters, labels, training, layer choice, report; resumable."""
