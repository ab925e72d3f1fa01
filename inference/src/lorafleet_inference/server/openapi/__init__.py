"""The OpenAPI document of the public port, made of what reads its requests and writes its answers."""
