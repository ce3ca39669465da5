"""How much a service does at a time, and the answer to a client that asks for more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drifting._checks import check_counts
from drifting.errors import InputError, one_line

# Limit of the samples of a request unless one is given: their number, and their bytes in the user's form.
_MOST_SAMPLES, _MOST_BYTES = 1024, 2**26
# Longest sentence of a refusal.
_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a service.

    Attributes:
        max_samples: largest number of samples of a request; by default 1024, or as many as have 64 MiB.
        max_waiting: largest number of requests in hand. Further ones are refused until one of these is answered.
        timeout: seconds after which a request that waits for its samples is given up.
        max_body: largest number of bytes of the body of a request.
    """

    max_samples: int | None = None
    max_waiting: int = 64
    timeout: float = 30.0
    max_body: int = 65_536

    def __post_init__(self) -> None:
        check_counts(
            {name: value for name in ("max_samples", "max_waiting", "max_body") if (value := getattr(self, name)) is not None}
        )
        if not 0 < self.timeout < math.inf:
            raise InputError(f"timeout is {self.timeout:g}: pass a number of seconds above 0, such as 30")

    def samples_of(self, shape: Sequence[int], value_bytes: int) -> int:
        """Return the largest number of samples of a request, for samples of a shape in the user's form."""
        return self.max_samples or max(1, min(_MOST_SAMPLES, _MOST_BYTES // (math.prod(shape) * value_bytes)))


class RefusalError(Exception):
    """A request that is not answered with samples.

    Args:
        status: status of HTTP.
        sentence: what is wrong, and what to do.
        retry_after: seconds after which the same request may succeed; None if it never will.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, one_line(sentence, _CHARACTERS)
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
