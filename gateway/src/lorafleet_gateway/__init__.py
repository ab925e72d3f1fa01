"""OpenAI front door of a cluster: `model` of a request -> a ready pod that holds the adapter."""
