"""The pod: a continuous-batching engine for one base model and many LoRA adapters, behind an OpenAI-compatible API."""
