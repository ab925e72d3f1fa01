"""The pod's HTTP ports."""
