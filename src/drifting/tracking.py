"""What is measured during training, one JSON object a line, in the run folder."""

import json
from pathlib import Path
from typing import Any

from drifting._files import atomic_path
from drifting._json import parse_json
from drifting.errors import InputError, reason

# Name of a drift norm: this, the feature, the temperature, with a slash between.
DRIFT_NORM = "drift_norm"


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
        try:
            *lines, _ = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(f"log is '{self.path}', which cannot be read ({reason(error)}): delete it") from None
        return [self._parsed(line, number) for number, line in enumerate(lines, 1)]

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = parse_json(line.decode(), finite=False)
            if not isinstance(values, dict) or type(values.get("step")) is not int:
                raise ValueError("it has no step")
            for name, value in values.items():
                if type(value) not in (int, float) or (name.startswith(f"{DRIFT_NORM}/") and name.count("/") < 2):
                    raise ValueError(f"{name} is no figure")
        except ValueError as error:
            raise InputError(f"log is '{self.path}', whose line {number} is damaged ({reason(error)}): delete that line") from None
        return values

    def wind_back(self, step: int) -> None:
        """Drop every line after `step`, as if the run had been stopped there."""
        kept = [line for line in self.read() if line["step"] <= step]
        with atomic_path(self.path) as scratch:
            scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
