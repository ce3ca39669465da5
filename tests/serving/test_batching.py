"""Requests share passes, and no sample depends on that."""

import threading

import pytest
import torch

from drifting.serving.batching import Batcher
from drifting.serving.limits import RefusalError

PATIENCE = 20


class Held:
    """Makes samples once it is let go, and records what was in each pass."""

    def __init__(self, make):
        self.make, self.passes, self.began, self.free = make, [], threading.Event(), threading.Event()

    def __call__(self, parts):
        self.began.set()
        assert self.free.wait(PATIENCE)
        self.passes.append([len(indices) for _, indices in parts])
        return self.make(parts)


@pytest.fixture
def held(digits):
    return Held(digits.one_pass())


@pytest.fixture
def batcher(held):
    made = Batcher(held, batch_size=8, max_waiting=3)
    made.open()
    yield made
    held.free.set()
    made.close()


def test_requests_that_wait_share_passes_and_get_their_own_samples(digits, held, batcher):
    asked = [
        (1, {"seed": 5}),
        (3, {"seed": 1, "labels": [4, 0]}),
        (4, {"seed": 2}),
        (10, {"seed": 1, "labels": [7]}),
        (2, {"seed": 1}),
    ]
    results = [batcher.submit(digits.request(*asked[0][:1], **asked[0][1]))]
    assert held.began.wait(PATIENCE)
    results += [batcher.submit(digits.request(count, **options)) for count, options in asked[1:]]
    held.free.set()
    for (count, options), result in zip(asked, results, strict=True):
        expected = digits.sample(count, **options).int()
        difference = (result.result(PATIENCE).int() - expected).abs()
        assert len(difference) == count
        assert int(difference.max()) <= 1  # a rounding of float32 may cross that of the byte
        assert float(expected.float().std()) > 10
    assert held.passes == [[1], [3, 4, 1], [8], [1, 2]]


def test_points_in_a_shared_pass_are_those_of_their_seed(toy):
    requests = [toy.request(5, seed=3), toy.request(4, seed=8)]
    together = toy.one_pass()([(requests[0], range(1, 5)), (requests[1], [2])])
    expected = torch.cat([toy.sample(5, seed=3)[1:], toy.sample(4, seed=8)[2:3]])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-6)


def test_request_that_is_given_up_takes_no_place_in_a_pass(digits, held, batcher):
    first, second, third = (batcher.submit(digits.request(count)) for count in (8, 5, 2))
    assert held.began.wait(PATIENCE)
    assert second.cancel()
    held.free.set()
    assert (len(first.result(PATIENCE)), len(third.result(PATIENCE))) == (8, 2)
    assert held.passes == [[8], [2]]


def test_failing_pass_is_told_to_its_requests_alone(digits):
    def make(parts):
        if parts[0][0].seed == 1:
            raise RuntimeError("no memory")
        return digits.one_pass()(parts)

    batcher = Batcher(make, batch_size=4, max_waiting=3)
    batcher.open()
    with pytest.raises(RuntimeError, match="no memory"):
        batcher.submit(digits.request(9, seed=1)).result(PATIENCE)
    assert len(batcher.submit(digits.request(2, seed=2)).result(PATIENCE)) == 2
    batcher.close()


def test_request_that_fails_leaves_the_others_of_its_pass_alone(digits, held):
    def make(parts):
        if any(request.seed == 1 for request, _ in parts):
            raise FloatingPointError("not finite")
        return digits.one_pass()(parts)

    held.make = make
    batcher = Batcher(held, batch_size=8, max_waiting=4)
    batcher.open()
    first, fine, failing, last = (batcher.submit(digits.request(2, seed=seed)) for seed in (0, 2, 1, 3))
    assert held.began.wait(PATIENCE)
    held.free.set()
    with pytest.raises(FloatingPointError, match="not finite"):
        failing.result(PATIENCE)
    assert [len(each.result(PATIENCE)) for each in (first, fine, last)] == [2, 2, 2]
    batcher.close()


def test_places_are_as_many_as_they_should_be(batcher):
    with batcher.place(), batcher.place(), batcher.place():
        assert batcher.in_hand == 3
        with pytest.raises(RefusalError, match="3 requests are waiting") as refused, batcher.place():
            pass
        assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    assert batcher.in_hand == 0
    with batcher.place():
        pass


def test_closing_gives_up_what_waits(digits, held, batcher):
    first, second = batcher.submit(digits.request(8)), batcher.submit(digits.request(1))
    assert held.began.wait(PATIENCE)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while batcher.works:
        pass
    held.free.set()
    assert len(first.result(PATIENCE)) == 8
    with pytest.raises(RefusalError, match="ended before") as refused:
        second.result(PATIENCE)
    assert refused.value.status == 503
    closing.join(PATIENCE)
    with pytest.raises(RefusalError, match="is ending"), batcher.place():
        pass
