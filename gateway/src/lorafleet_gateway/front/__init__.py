"""The port: requests in, offers to pods, answers out."""
