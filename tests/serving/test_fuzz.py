"""Requests that are made from the description of the service, fitting and unfitting, against the service in this process."""

import pytest
from hypothesis import HealthCheck, given, settings

from drifting.serving import Limits, build_app
from tests.support.later import import_later

schemathesis = import_later("schemathesis")

_SETTINGS = settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def described(digits):
    app = build_app(digits, Limits(max_samples=16), name="digits")
    return schemathesis.openapi.from_asgi("/openapi.json", app)


_FITTING, _UNFITTING = "positive", "negative"
_SAMPLES = [(method, "/sample", mode) for method in ("GET", "POST") for mode in (_FITTING, _UNFITTING)]


@pytest.mark.parametrize(
    ("method", "path", "mode"), [*_SAMPLES, *(("GET", path, _FITTING) for path in ("/", "/health", "/metrics"))]
)
def test_no_request_breaks_the_service(described, method, path, mode):
    """Statuses, types and bodies are those of the description; requests that do not fit it are refused."""
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

    operation = described[path][method]
    statuses = set()

    @_SETTINGS
    @given(operation.as_strategy(generation_mode=GenerationMode(mode)))
    def check(case):
        answer = case.call()
        statuses.add(answer.status_code)
        # The description does not know the classes and the guidance scales that a generator was trained with, and the check of
        # refusals does not know that a body can be too large.
        excluded = [positive_data_acceptance, *([negative_data_rejection] if answer.status_code == 413 else [])]
        case.validate_response(answer, excluded_checks=excluded)

    check()
    assert statuses & ({200} if mode == _FITTING else {400, 422})
