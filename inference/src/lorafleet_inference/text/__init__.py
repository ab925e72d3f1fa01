"""Text to token ids and back, in the API process: no torch, no AutoTokenizer."""
