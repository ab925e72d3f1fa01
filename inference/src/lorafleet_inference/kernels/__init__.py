"""Kernels for what torch has no operation for; each has a slow twin in plain torch, and the engine runs without them.

CPU: compiled by Numba when the engine starts, cached on disk (`cpu.py` loads them). `packed.py` needs no compiling.
"""
