"""The parameters of /sample: their types, limits and descriptions, and the sentence about one that does not fit."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from drifting.errors import one_line

# Samples of a request that names no number; largest number of labels.
_FEW, _MOST_LABELS = 16, 1024
_CHARACTERS = 60
_NOISE = "Standard deviation of the noise; as in the run by default. Above it samples vary more, below they are more typical."
# What to send instead of a body that is none.
OBJECT = 'send a JSON object, such as {"num_samples": 4}, with Content-Type: application/json'


class Problem(BaseModel):
    """Why a request is not answered."""

    detail: str = Field(description="One sentence that names the parameter, its value and the fix.")


class Points(BaseModel):
    """Samples as numbers."""

    samples: list[Any] = Field(description="The samples, each a list of its coordinates.")
    labels: list[int] | None = Field(None, description="The class of each sample, unless the generator has none.")


@dataclass(frozen=True)
class Questions:
    """The parameters of one service.

    Attributes:
        formats: formats of its samples; the first is the default.
        max_samples: largest number of samples of a request.
        class_names: names of the classes, if they are known.
        num_classes: number of classes; None for a generator without labels.
        guided: whether the generator takes a guidance scale.
    """

    formats: tuple[str, ...]
    max_samples: int
    class_names: Sequence[str] | None
    num_classes: int | None
    guided: bool

    def hints(self) -> dict[str, str]:
        """Return what to pass: parameter -> the end of a sentence."""
        return {
            "num_samples": f"pass a whole number from 1 to {self.max_samples}",
            "seed": f"pass a whole number from 0 to {2**31 - 1}",
            "labels": f"pass the names or numbers of at most {_MOST_LABELS} classes",
            "guidance_scale": "pass a number from 1 (no guidance) up, such as 1.5",
            "noise_scale": "pass a number above 0, such as 1.05",
            "format": f"pass {' or '.join(self.formats)}",
        }

    def models(self) -> tuple[type[BaseModel], type[BaseModel]]:
        """Return the parameters in a query, which are texts, and in a body, where numbers are numbers."""
        labels, scale = "This generator takes none.", "This generator takes none."
        if self.num_classes is not None:
            names = f": {', '.join(self.class_names[:20])}" if self.class_names else ""
            labels = f"Classes to cycle through, by name or number; all {self.num_classes} by default{one_line(names, 300)}."
        if self.guided:
            scale = "Strength of the guidance, from 1 (none) up; as in training by default."
        count, most = min(_FEW, self.max_samples), self.max_samples
        fields: dict[str, Any] = {
            "num_samples": (int, Field(count, ge=1, le=most, description="Number of samples.")),
            "seed": (int, Field(0, ge=0, le=2**31 - 1, description="Random seed. Sample i of a seed is always the same.")),
            "labels": (list[int | str] | None, Field(None, min_length=1, max_length=_MOST_LABELS, description=labels)),
            "guidance_scale": (float | None, Field(None, ge=1, allow_inf_nan=False, description=scale)),
            "noise_scale": (float | None, Field(None, gt=0, allow_inf_nan=False, description=_NOISE)),
            "format": (Literal[self.formats], Field(self.formats[0], description="Form of the samples.")),
        }
        query = create_model("SampleQuery", __config__=ConfigDict(extra="forbid"), **fields)
        body = create_model("SampleBody", __config__=ConfigDict(extra="forbid", strict=True), **fields)
        return query, body

    def sentence(self, error: Mapping[str, Any]) -> str:
        """Return the sentence about an error of pydantic."""
        hints, (where, *path) = self.hints(), error["loc"]
        name = str(path[0]) if path else ""
        if error["type"] == "json_invalid":
            return f"the body is not JSON: {OBJECT}"
        if name in hints:
            return f"{name} is {_shown(error.get('input'), typed=where == 'body')}: {hints[name]}"
        if error["type"] == "extra_forbidden":
            return f"parameter '{one_line(name, _CHARACTERS)}' does not exist: there are {', '.join(hints)}"
        return f"the body is not an object: {OBJECT}"


def _shown(value: object, *, typed: bool) -> str:
    """Return a value in quotes, unless it is a number; `typed` if a number in quotes is none, as in JSON."""
    if not isinstance(value, str):
        return one_line(repr(value), _CHARACTERS)
    shown = one_line(value, _CHARACTERS)
    with suppress(ValueError):
        float(value)
        return f"the text '{shown}'" if typed else shown
    return f"'{shown}'"
