"""transformers' own model code under our batch: loading, paged attention, LoRA, sampling."""
