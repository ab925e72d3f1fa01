"""What lm_eval is asked; also read by the tests, which compute it by themselves."""

from typing import Any

PAIRS: list[tuple[str, str]] = [
    ("The quick brown", " fox jumps over"),
    ("one two three", " four five"),
    ("one two three", " four four four"),
    ("", "the lazy dog"),
    ("x", "y"),
]
"""Context and continuation."""
QUESTIONS: list[dict[str, Any]] = [
    {"question": "one two", "choices": ["three", "four", "dog"], "answer": 0},
    {"question": "The quick", "choices": ["brown", "lazy"], "answer": 0},
    {"question": "five six", "choices": ["fox", "seven", "one"], "answer": 1},
]
"""Of a task with several choices."""
