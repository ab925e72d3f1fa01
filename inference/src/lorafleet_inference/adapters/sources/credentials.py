"""Credentials of declared sources, as their Secrets are mounted: one file a key, read anew each time, since they rotate."""

from dataclasses import dataclass, field
from pathlib import Path

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError


@dataclass(frozen=True, slots=True)
class GivenToken:
    """The token of a request; never shown."""

    _token: str = field(repr=False)

    def read(self, _: str) -> str | None:
        """Return it."""
        return self._token


@dataclass(frozen=True, slots=True)
class MountedSecret:
    """The folder of one Secret; one that nobody declared and that is not there is a source without credentials."""

    folder: Path
    declared: str | None = None
    """Name of the Secret that the source declares; None: none."""

    def read(self, key: str) -> str | None:
        """Return a value without white space around it; None where there is none.

        Raises:
            AdapterError: UNAUTHORIZED: it is there and cannot be read, or the declared Secret is not there.
        """
        if self.declared is not None and not self._has_keys():
            raise AdapterError(
                Reason.UNAUTHORIZED,
                f"Secret {self.declared} of source {self.folder.name} does not exist, or has no keys; "
                "a pod sees a new one within about a minute",
            )
        try:
            return (self.folder / key).read_text().strip() or None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise AdapterError(
                Reason.UNAUTHORIZED, f"the credential {key} of source {self.folder.name} cannot be read"
            ) from error

    def _has_keys(self) -> bool:
        try:
            return any(not entry.name.startswith("..") for entry in self.folder.iterdir())
        except OSError:
            return False
