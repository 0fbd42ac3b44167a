"""Training of the embedded prior: its world, its networks, its judge."""
