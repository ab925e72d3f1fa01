"""What the API server has: client, reflectors, names, look-ups."""
