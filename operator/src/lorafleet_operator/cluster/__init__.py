"""What the API server has: client, watches, store, Lease, key."""
