"""Wire types and shared names: everything two parts of lorafleet must agree on, and nothing that does I/O."""
