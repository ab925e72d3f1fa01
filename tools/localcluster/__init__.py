"""A real one-node Kubernetes without Docker, for the demo and the tests."""

from localcluster.cluster import Cluster, Description
from localcluster.errors import LocalClusterError

__all__ = ["Cluster", "Description", "LocalClusterError"]
