"""How good assets are: the judge, which reads images, and measures of their pixels and alpha."""
