"""Pure decisions over frozen snapshots: no clock, no network, no Kubernetes client."""
