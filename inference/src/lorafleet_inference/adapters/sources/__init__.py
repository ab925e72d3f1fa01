"""Where adapters come from: one file a kind of source. A new kind is a new file and a line in `registry.py`."""
