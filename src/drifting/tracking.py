"""What is measured during training, one JSON object a line, in the run folder."""

import json
from pathlib import Path
from typing import Any

from drifting.errors import InputError
from drifting.files import atomic_path


class MetricsLog:
    """An append-only log that a resumed run can wind back.

    Args:
        path: the file; made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, **values: Any) -> None:
        """Write one line; `step` belongs among the values."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all lines, but for a last one cut off by a crash; raises InputError if another is damaged."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except json.JSONDecodeError as error:
            raise InputError(f"log is '{self.path}', which has a damaged line ({error}): mend or delete it") from None

    def wind_back(self, step: int) -> None:
        """Drop every line after `step`, as if the run had been stopped there."""
        kept = [line for line in self.read() if line["step"] <= step]
        with atomic_path(self.path) as scratch:
            scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
