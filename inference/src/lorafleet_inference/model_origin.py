"""Where base models come from, as the cache of models asks it."""

from pathlib import Path
from typing import Protocol

TEXT_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
WEIGHT_FILES = ("*.safetensors",)
SKIPPED = ("[!1]*/*", "1[!_]*/*", "consolidated*")
"""Subfolders and second copies of the weights in formats that are not loaded; `1_Pooling` says how embeddings are made."""


class NotGiven(Exception):
    """An origin does not give what was asked for, for the reason that the text says."""

    def __init__(self, why: str, *, is_lasting: bool) -> None:
        super().__init__(why)
        self.is_lasting = is_lasting
        """Whether it has answered, and asking again changes nothing."""


class Origin(Protocol):
    """A base model somewhere else, whose content at some time is named by 40 hex digits, its commit. `str` names it in messages.

    Whatever asks may raise `NotGiven`.
    """

    @property
    def place(self) -> str:
        """What gives it, in messages: `the hub`."""

    @property
    def folder(self) -> str:
        """Its folder in a cache."""

    @property
    def ref(self) -> str:
        """What stands for a commit that may change, such as a branch; a file name."""

    @property
    def pinned(self) -> str | None:
        """The commit, where it is known without asking."""

    def commit(self) -> str:
        """Ask for the commit."""

    def sizes(self, commit: str) -> dict[str, int]:
        """Return all files with their bytes, 0 where these are not told."""

    def fetch(self, commit: str, name: str, folder: Path) -> None:
        """Bring a file into a folder, where it appears under its name by a rename.

        What is written before lies in `.cache` there, under names that end in `.incomplete` or `.lock`.

        Raises:
            OSError: the folder cannot be written.
        """

    def close(self) -> None:
        """Close idle connections."""
