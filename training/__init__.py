"""How the embedded prior was made: its world, its training, its judge."""
