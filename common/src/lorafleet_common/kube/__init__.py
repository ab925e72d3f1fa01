"""The API server of a cluster as JSON: requests, and collections that are followed."""
