"""API keys: who asks, for which models, and how much; the same rules at gateway and pod."""
