"""The page in the browser: served for one asset, or while one is being made."""
