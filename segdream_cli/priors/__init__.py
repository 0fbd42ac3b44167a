"""Text-to-image diffusion models: the interface, the Stable Diffusion layout, and finding and verifying their files."""
