# %% [markdown]
# # From a sentence to files
#
# This makes an asset, shows it and exports it through the Python API of segdream. VS Code opens the file as a
# notebook, and so does JupyterLab with jupytext; `python examples/notebook.py` runs it as a program. It takes about
# two minutes on two cores, and writes into the current folder.

# %%
"""Makes an asset, shows it and exports it; a notebook in cells."""

from PIL import Image

import segdream_cli as segdream

# %% [markdown]
# ## Make
#
# A session finds the weights and checks the settings. `mini` is embedded; `prior="sd21"` reads any text and needs a
# CUDA card. `iterate` yields a report per step, and `generate` only returns the asset.

# %%
session = segdream.load(prior="mini", quality="draft")
generation = session.iterate("a yellow school bus", seed=0)
for report in generation:
    if report.step % 20 == 0:
        print(f"step {report.step}, {report.stage}: {report.n_gaussians[0]:,} Gaussians")
splats = generation.splats()

# %% [markdown]
# ## Show
#
# The last expression of a cell is displayed in a notebook. Colours are bytes; with `background=None` there are four
# channels.

# %%
views = [segdream.render_image(splats, azimuth=azimuth, elevation=15, size=256) for azimuth in (35, 125, 215, 305)]
sheet = Image.new("RGB", (4 * 256, 256))
for column, view in enumerate(views):
    sheet.paste(Image.fromarray(view), (256 * column, 0))
sheet.save("bus.png")
sheet  # noqa: B018 (a notebook displays it)

# %%
first, *others = (Image.fromarray(frame) for frame in segdream.render_turntable(splats, n_frames=24, size=192))
first.save("bus.webp", save_all=True, append_images=others, duration=80, loop=0)
first  # noqa: B018

# %% [markdown]
# ## Export
#
# The suffix chooses the format: a PLY for other tools for Gaussians, a compact SPZ, a web page with its viewer. `read`
# returns the same arrays, in one frame: y up, the object faces +Z.

# %%
for name in ("bus.ply", "bus.spz", "bus.html"):
    segdream.write(name, splats)
again = segdream.read("bus.spz")
low, high = again.means.min(axis=0), again.means.max(axis=0)
print(f"{len(again):,} Gaussians between {low.round(2)} and {high.round(2)}; {again.provenance['prompt']!r}")
