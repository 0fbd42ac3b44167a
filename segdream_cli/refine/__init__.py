"""Refinement in image space: views of an asset are repainted by the prior, and the Gaussians are fitted to them.

views.py     cameras of a round, and the colours behind them
repaint.py   SDEdit: noise an image, denoise it again
losses.py    difference between renders and repainted views
split.py     fewer, more and smaller Gaussians

`optimize/refinement.py` makes steps of a run of them.
"""
