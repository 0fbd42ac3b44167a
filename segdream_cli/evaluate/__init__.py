"""Quality of assets: the judge, which classifies images, and measures of their pixels and alpha."""
