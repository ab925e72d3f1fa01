"""Workers take keys from the queue and run passes; what a pass comes to decides when the next one is due."""

import logging

from lorafleet_common.clock import monotonic
from lorafleet_operator import metrics
from lorafleet_operator.act.reconcile import Reconciler
from lorafleet_operator.decide.outcome import Outcome
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.process.queue import WorkQueue

logger = logging.getLogger(__name__)


async def work(queue: WorkQueue[BaseKey], reconciler: Reconciler) -> None:
    """Run passes for ever."""
    while True:
        key = await queue.get()
        began = monotonic()
        try:
            outcome = await reconciler.reconcile(key)
            if outcome.failure is not None:
                logger.warning("%s/%s: again in %.1f s: %s", *key, queue.retry(key), outcome.failure)
            elif not outcome.done:
                queue.retry(key)
            else:
                queue.forget(key)
            if outcome.look_again_seconds is not None:
                queue.add_after(key, outcome.look_again_seconds)
            metrics.RECONCILES.labels(result=_result(outcome)).inc()
        except Exception:  # a fault of ours in one base must not stop the others
            metrics.RECONCILES.labels(result="fault").inc()
            logger.exception("%s/%s: again in %.1f s", *key, queue.retry(key))
        finally:
            metrics.RECONCILE_SECONDS.observe(monotonic() - began)
            queue.done(key)
            metrics.QUEUE_LENGTH.set(len(queue))
            metrics.QUEUE_AGE.set(queue.oldest_age_seconds(monotonic()))


def _result(outcome: Outcome) -> str:
    if outcome.failure is not None:
        return "failed"
    return "ok" if outcome.done else "partly"
