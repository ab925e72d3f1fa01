"""The pods: what each says that it holds, and which one gets a request."""
