"""Faster network calls: fast layers, compilation, CUDA graphs; and the forecast of a run's memory and time."""
