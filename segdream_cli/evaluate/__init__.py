"""Quality of assets: metrics and their table, the judge, measures of images and alpha, statistics."""
