"""Credentials of declared sources, as their Secrets are mounted: one file a key, read anew each time, since they rotate."""

from dataclasses import dataclass
from pathlib import Path

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError


@dataclass(frozen=True, slots=True)
class MountedSecret:
    """The folder of one Secret; a folder that is not there is a source without credentials."""

    folder: Path

    def read(self, key: str) -> str | None:
        """Return a value without white space around it; None where there is none.

        Raises:
            AdapterError: UNAUTHORIZED: it is there and cannot be read.
        """
        try:
            return (self.folder / key).read_text().strip() or None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise AdapterError(
                Reason.UNAUTHORIZED, f"the credential {key} of source {self.folder.name} cannot be read"
            ) from error
