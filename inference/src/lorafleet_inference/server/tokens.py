"""`POST /tokenize` and `POST /detokenize`, as vLLM has them: what a prompt is in tokens, and what tokens are in text."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Annotated

import msgspec
from pydantic import Field

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.chat import Chat
from lorafleet_inference.server.completions import Completions
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.http import Exchange, json_response
from lorafleet_inference.server.leasing import leasing
from lorafleet_inference.server.logprobs import TokenNames
from lorafleet_inference.server.pod import Pod, check_token_ids
from lorafleet_inference.server.reading import read_json
from lorafleet_inference.server.requests import ChatRequest, CompletionRequest, TokenId, read_request
from lorafleet_inference.server.strict import Listed, Strict, has_field
from lorafleet_inference.server.surface import Leased, TokenIds
from lorafleet_inference.server.wire import Detokenized, Tokenized
from lorafleet_inference.text.output import spelled

MAX_TOKENS = 1 << 18
"""Of a text that is tokenised or of tokens that are written out, where the model's context is not larger."""
THREAD_TOKENS = 512
ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class TokenizeChat(ChatRequest):
    """A chat request; what makes no difference to its prompt changes nothing. Without `model` it is the base's."""

    model: ModelName = ""
    return_token_strs: bool = False


class TokenizeText(CompletionRequest):
    """Likewise a completion request of one text."""

    model: ModelName = ""
    prompt: str
    return_token_strs: bool = False


class DetokenizeRequest(Strict):
    """Tokens to write out."""

    model: ModelName = ""
    tokens: Listed[TokenId]


class _Form(msgspec.Struct):
    """What tells the two forms of a tokenise request apart."""

    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Tokens:
    """The two routes."""

    def __init__(self, pod: Pod, chat: Chat, completions: Completions, policy: FieldPolicy) -> None:
        self._pod = pod
        self._chat = chat
        self._completions = completions
        self._policy = policy

    async def tokenize(self, exchange: Exchange, body: bytes) -> None:
        """Answer with the tokens that a request's prompt has.

        Raises:
            RequestError: it has none.
        """
        request = await self._pod.readers.read(self._parse, body)
        with self._pod.state.request():
            async with leasing(self._pod, exchange, request.model or self._pod.config.served_name) as leased:
                most = leased.facts.max_model_len
                longer = msgspec.structs.replace(leased.facts, max_model_len=max(most, MAX_TOKENS))
                roomy = replace(leased, facts=longer)
                if isinstance(request, TokenizeChat):
                    (prompt,) = await self._chat.prompts(request, roomy)
                else:
                    (prompt,) = await self._completions.prompts(request, roomy)
                ids, names = prompt.token_ids, None
                if request.return_token_strs:
                    name = TokenNames(leased.text.pieces, as_ids=False).of
                    names = await asyncio.to_thread(lambda: tuple(map(name, ids)))
                answer = Tokenized(len(ids), most, ids, names)
        await exchange.respond(json_response(answer, headers=exchange.headers))

    def _parse(self, body: bytes) -> TokenizeChat | TokenizeText:
        if not has_field(body, _Form):
            return read_request(TokenizeText, body, self._policy)
        request = read_request(TokenizeChat, body, self._policy)
        self._chat.check(request)
        return request

    async def detokenize(self, exchange: Exchange, body: bytes) -> None:
        """Answer with the text that tokens make, special ones among them.

        Raises:
            RequestError: there are too many, or one is unknown.
        """
        request = await self._pod.readers.read(partial(read_json, DetokenizeRequest), body)
        self._policy.judge(request.others)
        with self._pod.state.request():
            async with leasing(self._pod, exchange, request.model or self._pod.config.served_name) as leased:
                most = max(leased.facts.max_model_len, MAX_TOKENS)
                if len(request.tokens) > most:
                    raise InvalidValue(f"tokens: at most {most}", param="tokens")
                ids = tuple(request.tokens)
                check_token_ids(ids, SamplingParams(max_tokens=0), leased.vocabulary, prompt_field="tokens")
                text = (
                    await asyncio.to_thread(_text_of, leased, ids)
                    if len(ids) > THREAD_TOKENS
                    else _text_of(leased, ids)
                )
        await exchange.respond(json_response(Detokenized(text), headers=exchange.headers))


def _text_of(leased: Leased, ids: TokenIds) -> str:
    text, _ = spelled(leased.text.detokenizer(strip_leading=True, skip_special=False), ids)
    return text
