"""The life of the process: start, follow, drain, end."""
