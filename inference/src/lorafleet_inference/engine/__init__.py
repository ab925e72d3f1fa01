"""The engine: from token ids and adapter keys to token ids, one step at a time. Knows no text and no HTTP."""
