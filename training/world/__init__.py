"""The procedural world that the embedded prior learns from."""
