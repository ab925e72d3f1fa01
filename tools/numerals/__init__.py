"""The demo model: a tiny Llama that writes numbers as English words, and adapters that each write them another way."""
