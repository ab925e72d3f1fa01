"""Makes an embedding of the hidden states that were pooled. Pure."""

import numpy as np

from lorafleet_inference.engine.messages import Pooling, PoolingKind
from lorafleet_inference.engine.plan import Vector


def embedding_of(pooled: Vector, pooling: Pooling, num_tokens: int) -> bytes:
    """Return an embedding as [dimensions] float32, little endian.

    Args:
        pooled: [hidden size]; of the kind `mean` the sum over the tokens.
        pooling: how it is asked for. What is left of fewer dimensions is normalised, as sentence-transformers does it.
        num_tokens: of the prompt.
    """
    vector = pooled.astype(np.float64)
    if pooling.kind is PoolingKind.MEAN:
        vector /= num_tokens
    vector = vector[: pooling.dimensions]
    if pooling.normalize:
        vector /= max(float(np.linalg.norm(vector)), 1e-12)
    return vector.astype("<f4").tobytes()
