"""A real one-node Kubernetes without Docker, for the demo and the tests."""
