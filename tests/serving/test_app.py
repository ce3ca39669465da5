"""What the service answers, and what it refuses."""

import asyncio
import io
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from drifting.errors import InputError
from drifting.serving import Limits

JSON = {"headers": {"Content-Type": "application/json"}}


def _arrays(answer):
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as file:
        return dict(file)


def test_concurrent_requests_get_what_they_would_get_alone(digits, service, ask):
    app = service(digits)
    addresses = [f"/sample?format=npz&num_samples={count}&seed={seed}" for seed, count in enumerate((3, 1, 20, 7, 2, 64))]
    for address, answer in zip(addresses, ask(app, *addresses), strict=True):
        count, seed = (int(part.partition("=")[2]) for part in address.split("&")[1:])
        found, expected = _arrays(answer), digits.sample(count, seed=seed).numpy()
        assert np.abs(found["samples"].astype(int) - expected).max() <= 1
        assert found["labels"].tolist() == [index % 10 for index in range(count)]


def test_query_and_body_ask_for_the_same(digits, service, ask):
    asked = {"num_samples": 5, "seed": 4, "labels": [3, "7"], "guidance_scale": 1, "format": "npz"}
    address = "/sample?num_samples=5&seed=4&labels=3&labels=7&guidance_scale=1&format=npz"
    first, second = map(_arrays, ask(service(digits), address, ("POST", "/sample", {"json": asked})))
    assert first["labels"].tolist() == [3, 7, 3, 7, 3]
    assert first["samples"].shape == (5, 8, 8, 1)
    assert all(np.array_equal(first[name], second[name]) for name in ("samples", "labels"))


def test_picture_of_images_is_that_of_the_command(digits, service, ask, tmp_path):
    from drifting.runs import write_samples

    (answer,) = ask(service(digits), "/sample?num_samples=20&seed=2")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    write_samples(digits, tmp_path / "samples.png", 20, seed=2)
    shown, expected = (np.asarray(Image.open(file)).astype(int) for file in (io.BytesIO(answer.content), tmp_path / "samples.png"))
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= 1


def test_points_are_numbers_arrays_or_a_picture(toy, service, ask):
    app = service(toy)
    numbers, arrays, picture = ask(app, *(f"/sample?num_samples=6&seed=3{more}" for more in ("", "&format=npz", "&format=png")))
    expected = toy.sample(6, seed=3).numpy()
    np.testing.assert_allclose(numbers.json()["samples"], expected, rtol=1e-5, atol=1e-6)
    assert numbers.json().keys() == {"samples"}
    np.testing.assert_allclose(_arrays(arrays)["samples"], expected, rtol=1e-5, atol=1e-6)
    assert Image.open(io.BytesIO(picture.content)).format == "PNG"


def test_every_request_has_noise_of_its_own_scale(toy, service, ask, monkeypatch):
    scales = {1.0: "", 0.1: "&noise_scale=0.1", 1.5: "&noise_scale=1.5"}
    answers = ask(service(toy), *(f"/sample?num_samples=6&seed=3{more}" for more in scales.values()))
    made = [np.array(answer.json()["samples"]) for answer in answers]
    for scale, samples in zip(scales, made, strict=True):
        monkeypatch.setattr(toy.generator, "noise_scale", scale)
        np.testing.assert_allclose(samples, toy.sample(6, seed=3).numpy(), rtol=1e-5, atol=1e-6)
    assert not np.allclose(made[0], made[1])


def test_name_of_a_class_is_a_label(images_run, service, ask):
    from drifting import runs

    names, unknown = ask(service(runs.load(images_run)), "/sample?labels=b&num_samples=2&format=npz", "/sample?labels=cat")
    assert _arrays(names)["labels"].tolist() == [1, 1]
    assert unknown.status_code == 422
    assert unknown.json()["detail"].startswith("labels has 'cat': did you mean '")


REFUSED = {
    "no samples": ("/sample?num_samples=0", 422, "num_samples is 0: pass a whole number from 1 to 64"),
    "too many": ("/sample?num_samples=65", 422, "num_samples is 65: pass a whole number from 1 to 64"),
    "no number": ("/sample?num_samples=many", 422, "num_samples is 'many': pass a whole number"),
    "huge number": (f"/sample?seed={'9' * 6000}", 422, "seed is 999"),
    "other class": ("/sample?labels=10", 422, "labels is [10]: choose from 0 to 9"),
    "guidance": ("/sample?guidance_scale=2", 422, "guidance_scale is 2, but"),
    "no guidance": ("/sample?guidance_scale=nan", 422, "guidance_scale is nan: pass a number"),
    "no noise": ("/sample?noise_scale=0", 422, "noise_scale is 0: pass a number above 0, such as 1.05"),
    "huge noise": ("/sample?noise_scale=1e30", 422, "noise_scale is 1e+30: pass at most 1000, such as 1.05"),
    "format": ("/sample?format=gif", 422, "format is 'gif': pass png or npz"),
    "unknown": ("/sample?sed=3", 422, "parameter 'sed' does not exist: there are num_samples, seed,"),
    "address": ("/samples", 404, "there is nothing at this address"),
    "method": (("PUT", "/sample", {}), 405, "PUT is not possible here"),
    "large body": (("POST", "/sample", {"content": b" " * 2000, **JSON}), 413, "the body has more than 1000 bytes"),
    "no JSON": (("POST", "/sample", {"content": b"{seed", **JSON}), 422, "the body is not JSON: send a JSON object"),
    "deep": (("POST", "/sample", {"content": b'{"labels":' + b"[" * 900, **JSON}), 422, "the body is not JSON"),
    "no text": (("POST", "/sample", {"content": b"\xff\xfe{", **JSON}), 400, "the body cannot be read: send a JSON object"),
    "list": (("POST", "/sample", {"json": [1]}), 422, "the body is not an object: send a JSON object"),
    "form": (("POST", "/sample", {"data": {"seed": "1"}}), 422, "the body is not an object: send a JSON object"),
    "text": (("POST", "/sample", {"json": {"seed": "1"}}), 422, "seed is the text '1': pass a whole number"),
    "other text": (("POST", "/sample", {"json": {"seed": "many"}}), 422, "seed is 'many': pass a whole number"),
    "truth": (("POST", "/sample", {"json": {"num_samples": True}}), 422, "num_samples is True: pass a whole number"),
    "surrogate": (("POST", "/sample", {"content": b'{"labels": ["\\ud800"]}', **JSON}), 422, "labels has '?'"),
    "both": (("POST", "/sample?seed=1", {}), 422, "parameters are in the query: put"),
}


def test_requests_that_do_not_fit_get_one_sentence(digits, service, ask):
    app = service(digits, max_samples=64, max_body=1000)
    answers = ask(app, *(request for request, *_ in REFUSED.values()))
    for (name, (_, status, start)), answer in zip(REFUSED.items(), answers, strict=True):
        assert (name, answer.status_code) == (name, status)
        assert answer.json().keys() == {"detail"}
        assert answer.json()["detail"].startswith(start), (name, answer.text)
        assert len(answer.json()["detail"]) <= 300
    assert [answer.status_code for answer in ask(app, "/sample", "/health")] == [200, 200]


def test_body_that_arrives_too_slowly_is_refused(digits, service, ask):
    async def drip():
        for _ in range(40):
            yield b" "
            await asyncio.sleep(0.1)

    (answer,) = ask(service(digits, timeout=1.0), ("POST", "/sample", {"content": drip(), **JSON}))
    assert answer.status_code == 408
    assert answer.json() == {"detail": "the body did not arrive within 1 s: send it at once"}


@pytest.fixture
def slow_digits(digits, monkeypatch):
    """The run of digits, whose passes after the first sample wait until the event is set."""
    free, one_pass = threading.Event(), digits.one_pass
    free.set()

    def waiting():
        make = one_pass()

        def held(parts):
            assert free.wait(20)
            return make(parts)

        return held

    monkeypatch.setattr(type(digits), "one_pass", lambda self: waiting())
    yield digits, free
    free.set()


def test_requests_beyond_the_queue_and_slow_ones_are_refused(slow_digits, service, ask):
    run, free = slow_digits
    app = service(run, max_waiting=2, timeout=0.2)
    free.clear()
    late, other, refused, health = ask(app, "/sample", "/sample", "/sample", "/health")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert refused.json()["detail"] == "2 requests are waiting, which is the limit: send this one again later"
    for each in (late, other):
        assert (each.status_code, each.headers["Retry-After"]) == (503, "5")
        assert each.json()["detail"].startswith("the samples were not made within 0.2 s: ask for fewer")
    assert health.status_code == 200
    free.set()
    assert ask(app, "/sample")[0].status_code == 200


def test_failure_of_the_generator_is_one_sentence(digits, service, ask, monkeypatch):
    app = service(digits)
    monkeypatch.setattr(type(digits.generator), "forward", lambda *_: 1 / 0)
    (answer,) = ask(app, "/sample")
    assert (answer.status_code, answer.json()["detail"]) == (
        500,
        "the generator failed (division by zero): see the log of the service",
    )


def test_samples_that_are_not_finite_are_one_sentence(toy, service, ask, monkeypatch):
    app = service(toy)
    monkeypatch.setattr(type(toy.generator), "forward", lambda self, noise, *_: noise.new_full((len(noise), 2), torch.inf))
    for answer in ask(app, *(f"/sample?format={each}" for each in ("json", "npz", "png"))):
        sentence = "the generator failed (its samples are not finite): see the log of the service"
        assert (answer.status_code, answer.json()) == (500, {"detail": sentence})
    with pytest.raises(InputError, match="run is 'a run', whose samples are not finite: name another one, or train it again"):
        service(toy)


def test_failure_of_the_form_is_one_sentence(toy, service, ask, monkeypatch):
    monkeypatch.setattr("drifting.serving.app.encode", lambda *_: 1 / 0)
    (answer,) = ask(service(toy), "/sample")
    assert answer.status_code == 500
    assert answer.json()["detail"].startswith("the generator failed (division by zero)")


def test_state_and_figures_are_told(digits, service, ask):
    app = service(digits)
    ask(app, "/sample?num_samples=5", "/sample?num_samples=0", "/nothing")
    about, health, metrics, described = ask(app, "/", "/health", "/metrics", "/openapi.json")
    assert about.json()["sample_shape"] == [8, 8, 1]
    assert (about.json()["num_classes"], about.json()["formats"]) == (10, ["png", "npz"])
    assert health.json() == {"status": "ok", "requests_in_hand": 0}
    heads = ask(app, *(("HEAD", address, {}) for address in ("/", "/health", "/metrics", "/sample")))
    assert [head.status_code for head in heads] == [200, 200, 200, 405]
    lines = metrics.text.splitlines()
    assert "drifting_samples_total 5.0" in lines
    assert 'drifting_requests_total{path="/sample",status="200"} 1.0' in lines
    assert 'drifting_requests_total{path="/sample",status="422"} 1.0' in lines
    assert 'drifting_requests_total{path="other",status="404"} 1.0' in lines
    assert "drifting_pass_samples_count 1.0" in lines
    parameters = described.json()["paths"]["/sample"]["get"]["parameters"]
    assert {one["name"] for one in parameters} == {"num_samples", "seed", "labels", "guidance_scale", "noise_scale", "format"}
    assert all(len(one["description"]) > 10 for one in parameters)
    assert "http" not in json.dumps(described.json()["paths"])


def test_service_that_ends_says_so(digits, service, ask):
    app = service(digits)
    app.state.batcher.close()
    for answer in ask(app, "/sample", "/health"):
        assert answer.status_code == 503
        assert "is ending" in answer.json()["detail"]


def test_limits_that_make_no_sense_are_refused():
    for name, value in {"max_samples": 0, "max_waiting": 0, "timeout": 0.0, "max_body": -1}.items():
        with pytest.raises(InputError, match=f"{name} is {value:g}"):
            Limits(**{name: value})
    assert Limits().samples_of((2,), 4) == 1024
    assert Limits().samples_of((256, 256, 3), 1) == 341
    assert Limits(max_samples=9).samples_of((256, 256, 3), 1) == 9
