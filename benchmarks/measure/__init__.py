"""What the benchmarks share: models made from nothing, a pod to measure, clients, baselines, reports."""
