"""The operator: custom resources to pods, pods' adapters to what is wanted, and what came of it back into status."""
