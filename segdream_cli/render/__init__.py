"""From Gaussians to images: cameras, the rasteriser, images and videos."""
