"""What every layer may use: atomic files, downloads, the Hub, devices and their memory."""
