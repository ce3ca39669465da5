import pytest
import torch

from drifting.errors import InputError
from drifting.metrics.inception_score import RunningInceptionScore

RNG = torch.Generator().manual_seed(0)
PROBABILITIES = torch.randn(40, 6, generator=RNG).mul(2).softmax(1)


def _score(probabilities: torch.Tensor) -> float:
    """Return the score of one part, as the definition has it, in float64."""
    mean = probabilities.double().mean(0)
    return float((probabilities.double() * (probabilities.double() / mean).log()).sum(1).mean().exp())


def _running(probabilities: torch.Tensor, size: int, part: int) -> float:
    running = RunningInceptionScore(part)
    for batch in probabilities.split(size):
        running.add(batch)
    return running.score()


@pytest.mark.parametrize("size", [1, 3, 10, 40])
@pytest.mark.parametrize("part", [10, 20, 40, 100])
def test_score_is_the_mean_of_those_of_its_parts_in_any_batches(size, part):
    expected = [_score(some) for some in PROBABILITIES.split(part)]
    assert _running(PROBABILITIES, size, part) == pytest.approx(sum(expected) / len(expected), rel=1e-9)


def test_last_part_that_is_not_full_is_left_out():
    assert _running(PROBABILITIES, 7, 30) == pytest.approx(_score(PROBABILITIES[:30]), rel=1e-9)


@pytest.mark.parametrize(("rows", "score"), [(torch.eye(5), 5), (torch.eye(5)[:1].repeat(9, 1), 1), (torch.full((9, 4), 0.25), 1)])
def test_certain_classes_count_and_doubt_does_not(rows, score):
    assert _running(rows, 4, 100) == pytest.approx(score)


def test_nothing_has_no_score():
    with pytest.raises(InputError, match="probabilities are of 0 samples: the score needs at least 1"):
        RunningInceptionScore().score()
