"""Two processes do what one does: the same draws bit for bit, the same loss and gradients to rounding."""

from dataclasses import replace

import pytest
import torch

from tests.distributed.one_step import GUIDED, Case, assert_close, drawn, pulled, trained
from tests.generators import test_every_generator as generators
from tests.support.covering import pairwise

pytestmark = pytest.mark.distributed

CASES = {
    "labels": Case(),
    "one label each": Case(schedule={"labels_per_step": 2}),
    "guidance": Case(schedule=GUIDED),
    "one guidance scale": Case(schedule={"guidance_scale": 2.0, "unconditional": 3}),
    "bank": Case(bank=True, schedule=GUIDED),
    "independent negatives": Case(schedule={"independent_negatives": True}),
    "detached samples": Case(schedule={"detached_samples": 3, **GUIDED}),
    "learned temperature": Case(schedule={"temperature_learning_rate": 0.1, **GUIDED}, steps=2),
    "microbatches": Case(schedule={"microbatch_size": 5, **GUIDED}),
    "labels one at a time": Case(bank=True, schedule={"labels_per_microbatch": 1, "independent_negatives": True, **GUIDED}),
    "clipping": Case(schedule={"max_grad_norm": 1e-3}),
    "one population": Case(labeled=False),
    "one population, bank": Case(labeled=False, bank=True),
    "one population, independent": Case(labeled=False, schedule={"independent_negatives": True}),
    "one population, detached samples": Case(labeled=False, schedule={"detached_samples": 4, "microbatch_size": 2}),
    "one population, microbatches": Case(labeled=False, schedule={"microbatch_size": 2}),
    "shares of weights": Case(sharded=True, schedule={"max_grad_norm": 1e-3}),
    "shares, microbatches": Case(sharded=True, gradient_checkpointing=True, schedule={"microbatch_size": 5, **GUIDED}),
    "shares, labels one at a time": Case(
        sharded=True, gradient_checkpointing=True, schedule={"labels_per_microbatch": 1, **GUIDED}
    ),
    "shares, one population": Case(labeled=False, sharded=True, gradient_checkpointing=True),
    "muon": Case(schedule={"optimizer": "muon"}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_step_of_two_processes_is_that_of_one(pair, case):
    expected = trained(case)
    assert sum(float(gradient.abs().sum()) for gradient in expected["gradients"].values()) > 0
    for found in pair(trained, case):
        assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["guidance", "one population", "shares, microbatches"])
def test_step_in_float32_is_the_same_to_a_thousandth(pair, name):
    case = replace(CASES[name], dtype=torch.float32)
    expected = trained(case)["gradients"]
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for found in pair(trained, case):
        errors = [(gradient - expected[name]).norm() for name, gradient in found["gradients"].items()]
        assert torch.stack(errors).norm() < 1e-3 * norm


def test_several_steps_stay_together(pair):
    case = replace(CASES["guidance"], steps=4)
    for found in pair(trained, case):
        assert_close(found, trained(case), rtol=1e-6, atol=1e-9)


DRAWN = ("guidance", "bank", "independent negatives", "one population", "one population, bank", "one population, detached samples")


@pytest.mark.parametrize("name", DRAWN)
def test_draws_do_not_depend_on_the_number_of_processes(pair, name):
    first, second = pair(drawn, CASES[name])
    dim = 0 if CASES[name].labeled else 1
    for one, *two in zip(drawn(CASES[name]), first, second, strict=True):
        for key, value in one.items():
            parts = [part[key] for part in two]
            if value is None or isinstance(value, bool | float):  # the same for all processes
                assert parts == [value, value]
            elif key == "rng":
                assert all(torch.equal(part, value) for part in parts)
            elif isinstance(value, dict):  # of one population each process holds all positives
                for feature, all_of_it in value.items():
                    shares = [part[feature] for part in parts]
                    assert torch.equal(torch.cat(shares) if dim == 0 else shares[1], all_of_it)
            else:
                assert torch.equal(torch.cat(parts, dim), value)


@pytest.mark.parametrize(
    *pairwise(
        make=(generators._mlp, generators._decoder_mlp, generators._unet, generators._dit),
        num_classes=(None, 3),
        sharded={"copies": False, "shares": True},
    )
)
def test_every_generator_learns_from_all_processes(pair, make, num_classes, sharded):
    expected = pulled(make, num_classes, False)
    for found in pair(pulled, make, num_classes, sharded):
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
