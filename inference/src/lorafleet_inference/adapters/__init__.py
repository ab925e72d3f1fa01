"""Adapters: where they come from, what they are, who may use which revision. Imports no torch."""
