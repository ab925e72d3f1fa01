"""The simulation behind benchmarks/placement.py: demand, pods, policies, runs."""
