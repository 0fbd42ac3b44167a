"""Utilities for every layer: atomic files, downloads, the Hub, devices and their memory."""
