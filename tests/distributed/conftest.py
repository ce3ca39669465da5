"""The two processes that the tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.distributed.pair import Pair


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    two = Pair()
    yield two
    two.stop()
