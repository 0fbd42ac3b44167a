"""Point-E: coloured point clouds from a text, with the official checkpoints or a small one of the same kind."""
