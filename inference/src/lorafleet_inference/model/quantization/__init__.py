"""Bases with quantised weights: read as they are in files, or quantised at load; brought back for each product."""
