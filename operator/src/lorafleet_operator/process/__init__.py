"""The life of the process: start, workers, resync, health, end."""
