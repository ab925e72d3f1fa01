"""What changes the cluster and its pods: one reconcile, and what it calls."""
