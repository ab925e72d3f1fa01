"""The results of runs, written whenever there is something new: a run that is interrupted loses nothing that was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Measure = Callable[[Callable[[Json], None]], Json]
"""Measures, and is given what to call with the results so far."""


class Results:
    """What a file of results holds."""

    def __init__(self, environment: Json, output: Path | None) -> None:
        self.environment = environment
        self.sweep: list[Json] = []
        self.run: Json | None = None
        self._output = output

    @property
    def sizes(self) -> list[Json]:
        """All runs, the smallest first."""
        return [*self.sweep, *([self.run] if self.run is not None else [])]

    def add_smaller(self, measure: Measure) -> None:
        """Measure one of the smaller sizes."""
        number = len(self.sweep)

        def keep(found: Json) -> None:
            self.sweep[number:] = [found]
            self._write()

        keep(measure(keep))

    def add_run(self, measure: Measure) -> None:
        """Measure the size that it is about."""

        def keep(found: Json) -> None:
            self.run = found
            self._write()

        keep(measure(keep))

    def text(self) -> str:
        """As the file has it."""
        found = {"environment": self.environment, "sweep": self.sweep, "run": self.run}
        return json.dumps({name: value for name, value in found.items() if value}, indent=1) + "\n"

    def _write(self) -> None:
        if self._output is not None:
            part = self._output.with_name(f"{self._output.name}.part")
            part.write_text(self.text())
            part.replace(self._output)
