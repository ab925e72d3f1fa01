"""Embedding and head of which each rank has some rows."""

import torch

from lorafleet_inference.model.decoder.words import WordEmbedding, WordHead, Words

TOKENS = 11
WHOLE = torch.arange(TOKENS * 4.0).view(TOKENS, 4) + 1


def embedding(rank: int, size: int) -> WordEmbedding:
    words = Words(TOKENS, rank, size)
    source = torch.nn.Embedding(words.num_held, 4)
    source.weight = torch.nn.Parameter(words.rows(WHOLE), requires_grad=False)
    return WordEmbedding(source, words, lambda: WHOLE)


def head(rank: int, size: int) -> WordHead:
    words = Words(TOKENS, rank, size)
    source = torch.nn.Linear(4, words.num_held, bias=False)
    source.weight = torch.nn.Parameter(words.rows(WHOLE), requires_grad=False)
    return WordHead(source, words, lambda: WHOLE)


def test_each_token_is_one_ranks() -> None:
    for size in (2, 4, 5, 8):  # of eight, two have no token of eleven
        parts = [Words(TOKENS, rank, size).rows(WHOLE) for rank in range(size)]
        assert len({len(part) for part in parts}) == 1
        assert torch.equal(torch.cat(parts)[:TOKENS], WHOLE)
        assert not torch.cat(parts)[TOKENS:].any()


def test_what_ranks_look_up_adds_up() -> None:
    ids = torch.tensor([[0, 10, 3, 3, 5]])
    found = sum(embedding(rank, 4)(ids) for rank in range(4))
    assert torch.equal(found, WHOLE[ids])


def test_the_first_rank_gathers_logits_in_their_order() -> None:
    x = torch.ones(1, 2, 4)
    told: list[torch.Tensor] = []
    for rank in (3, 2, 1):
        other = head(rank, 4)
        other.gather = lambda part: told.insert(0, part)
        assert other(x).shape == (1, 2, TOKENS)
    first = head(0, 4)
    first.gather = lambda part: [part, *told]
    assert torch.equal(first(x), x @ WHOLE.t())


def test_no_row_needs_no_other_rank() -> None:
    first = head(0, 4)
    first.gather = lambda part: (_ for _ in ()).throw(AssertionError)
    assert first(torch.ones(1, 0, 4)).shape == (1, 0, TOKENS)
