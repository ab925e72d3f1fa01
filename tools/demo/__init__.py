"""The demo: from nothing to a fleet on a real Kubernetes that answers in ten languages of numbers."""
