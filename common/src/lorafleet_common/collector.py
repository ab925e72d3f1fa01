"""Python's garbage collector in a process that serves."""

import gc
import logging

logger = logging.getLogger(__name__)


def pass_over_what_is_there() -> None:
    """Have the collector look only at what comes from now on; to be called when all is loaded.

    A full collection stops the process. It looks at everything there is, of which nearly all are modules and models that
    stay: a tenth of a second, or a quarter of one beside torch.
    """
    gc.collect()
    gc.freeze()
    logger.debug("garbage collections pass over %d objects", gc.get_freeze_count())
