"""Point-E: coloured point clouds from a sentence, with the official checkpoints or a small one of the same kind."""
