"""Faster network calls: fast layers, compilation, CUDA graphs; and the estimate of a run's memory and time."""
