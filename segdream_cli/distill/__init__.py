"""Distillation methods: each turns latents into the gradient that pulls them towards the prior."""

from segdream_cli.distill.sctd import sctd

METHODS = {"sctd": sctd}

__all__ = ["METHODS", "sctd"]
