"""A pod in a trace: what the log says, and the span of a request in the words for generative AI."""

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.canned_pod import CannedPod, canned_pod, model_without_weights
from support.waiting import wait_for

from lorafleet_common.tracing_spans import SpanTracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "canned"
    model_without_weights(folder)
    return folder


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def served(model: Path, exporter: InMemorySpanExporter) -> AsyncIterator[CannedPod]:
    tracing = SpanTracing(SimpleSpanProcessor(exporter), service="lorafleet-inference")
    async with canned_pod(model, tracing=tracing) as pod:
        yield pod


async def ended(exporter: InMemorySpanExporter, number: int) -> tuple[ReadableSpan, ...]:
    """Wait until so many spans have ended: they do after their answers."""
    look = partial(wait_for, "spans", lambda: len(exporter.get_finished_spans()) == number, interval_seconds=0.01)
    await asyncio.to_thread(look)
    return exporter.get_finished_spans()


async def test_a_span_tells_what_was_asked_and_what_came(
    served: CannedPod, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    messages: Any = [{"role": "user", "content": "one two three four"}]
    sent = {**GIVEN, "x-request-id": "mine"}
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0, default_headers=sent) as client:
        caplog.set_level(logging.INFO, "lorafleet_inference.access")
        chat = await client.chat.completions.create(
            model="base", messages=messages, max_tokens=3, temperature=0.5, seed=7, n=2
        )
        stream = await client.responses.create(model="base", input="one", stream=True, max_output_tokens=16)
        events = [event async for event in stream]
        text = await client.completions.create(model="base", prompt=["one", "two"], max_tokens=2)
    first, second, third = await ended(exporter, 3)
    assert any(record.getMessage().endswith(f" id=mine trace={TRACE}") for record in caplog.records)
    assert first.name == "chat base"
    assert first.context.trace_id == int(TRACE, 16)
    assert first.parent is not None
    assert first.parent.span_id == int(PARENT, 16)
    told = dict(first.attributes or {})
    seconds = [told.pop(name) for name in ("gen_ai.response.time_to_first_chunk", "lorafleet.queue_seconds")]
    assert all(isinstance(one, float) and 0 <= one < 60 for one in seconds)
    assert chat.usage is not None
    assert told == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lorafleet",
        "gen_ai.request.model": "base",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.seed": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.response.id": chat.id,
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": chat.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": chat.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "lorafleet.request_id": "mine",
    }
    assert second.name == "chat base"
    assert (second.attributes or {})["gen_ai.request.stream"] is True
    last: Any = events[-1]
    assert (second.attributes or {})["gen_ai.usage.output_tokens"] == last.response.usage.output_tokens
    assert third.name == "text_completion base"
    assert text.usage is not None
    assert (third.attributes or {})["gen_ai.usage.input_tokens"] == text.usage.prompt_tokens


async def test_a_span_of_embeddings(served: CannedPod, exporter: InMemorySpanExporter) -> None:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
        answer = await client.embeddings.create(model="base", input=["one", "two three"], dimensions=3)
    (span,) = await ended(exporter, 1)
    told = dict(span.attributes or {})
    assert span.name == "embeddings base"
    assert (told["gen_ai.operation.name"], told["gen_ai.request.model"]) == ("embeddings", "base")
    assert told["gen_ai.embeddings.dimension.count"] == 3
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (answer.usage.prompt_tokens, 0)


async def test_refusals_and_probes(served: CannedPod, exporter: InMemorySpanExporter) -> None:
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        await client.get("/health")
        await client.get("/metrics")
        refused = await client.post("/v1/completions", json={"model": "nobody", "prompt": "x"})
    assert refused.status_code == 404
    (span,) = await ended(exporter, 1)
    assert (span.attributes or {})["http.response.status_code"] == 404
    assert (span.attributes or {})["gen_ai.request.model"] == "nobody"
    assert "gen_ai.usage.output_tokens" not in (span.attributes or {})
    assert span.status.is_unset
    assert span.parent is None


async def test_a_stream_that_fails_is_an_error(served: CannedPod, exporter: InMemorySpanExporter) -> None:
    asked = {"model": "base", "prompt": "one", "stream": True, "max_tokens": 100_000, "ignore_eos": True}
    async with (
        httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=asked) as answer,
    ):
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        await served.pod.engine.close()
        rest = [line async for line in lines]
    assert any('"error"' in line for line in rest)
    (span,) = await ended(exporter, 1)
    assert (span.attributes or {})["http.response.status_code"] == 200
    assert (span.attributes or {})["error.type"]
    assert not span.status.is_unset
