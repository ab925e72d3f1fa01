"""The API server as JSON: errors, client, reflector. Needs the extra `kube`; the pod imports none of it."""
