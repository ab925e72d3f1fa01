"""The demo: from nothing to a fleet on a real Kubernetes that writes numbers in ten ways."""
