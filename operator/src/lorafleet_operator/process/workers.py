"""Workers take keys from the queue and run passes; a pass that fails comes again, later each time."""

import asyncio
import logging
import time

from lorafleet_operator import metrics
from lorafleet_operator.act.queue import WorkQueue
from lorafleet_operator.act.reconcile import NotAllDone, Reconciler
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import OperatorError

logger = logging.getLogger(__name__)


async def work(queue: WorkQueue[BaseKey], reconciler: Reconciler) -> None:
    """Run passes for ever."""
    while True:
        key = await queue.get()
        began = time.monotonic()
        try:
            await reconciler.reconcile(key)
            queue.forget(key)
            metrics.RECONCILES.labels(result="ok").inc()
        except NotAllDone:
            metrics.RECONCILES.labels(result="partly").inc()
            queue.retry(key)
        except OperatorError as error:
            metrics.RECONCILES.labels(result="failed").inc()
            logger.warning("%s/%s: again in %.1f s: %s", *key, queue.retry(key), error)
        except Exception:  # a fault of ours in one base must not stop the others
            metrics.RECONCILES.labels(result="fault").inc()
            logger.exception("%s/%s: again in %.1f s", *key, queue.retry(key))
        finally:
            metrics.RECONCILE_SECONDS.observe(time.monotonic() - began)
            queue.done(key)
            metrics.QUEUE_LENGTH.set(len(queue))
            metrics.QUEUE_AGE.set(queue.oldest_age_seconds(asyncio.get_running_loop().time()))
