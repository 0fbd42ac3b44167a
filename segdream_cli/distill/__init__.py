"""Distillation methods, one file each: they turn latents into the gradient that pulls them towards the prior."""
