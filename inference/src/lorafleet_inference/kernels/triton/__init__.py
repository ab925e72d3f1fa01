"""Triton kernels, the engine's backend on CUDA; `torch` is the reference, and what they cannot do is left to it.

`lora.py` and `attention.py` hold what runs on the device; `rows.py` and `paged.py` prepare a step for them; `blocks.py`
has the sizes of their tiles. Every launch goes through `launch.launch`.
"""
