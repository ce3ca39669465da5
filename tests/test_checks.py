"""What the core requires of its inputs, and what it says if they do not fit."""

import functools
import re

import numpy as np
import pytest
import torch

from drifting import DriftingLoss, InputError, drifting_loss
from drifting._checks import check_learning_rate, check_seed, check_shapes, constant, full_precision, join_weights, nearest_name
from drifting.fields import Lookahead, MeanShift, mean_shift

ODD_SHAPES = [
    ((4, 2), (5, 3), "feature size"),
    ((2, 4, 2), (3, 5, 2), "groups"),
    ((2, 4, 2), (5, 2), r"all as \[g, n, d\]"),
    ((4,), (5,), r"pass all as \[n, d\]"),
    ((1, 2, 4, 2), (1, 2, 5, 2), r"pass all as \[n, d\]"),
    ((4, 2), (0, 2), "at least one"),
    ((0, 2), (4, 2), "at least one"),
]


@pytest.mark.parametrize(("generated", "target", "message"), ODD_SHAPES)
def test_samples_that_do_not_fit_are_refused_with_their_shapes(generated, target, message):
    with pytest.raises(InputError, match=message) as caught:
        check_shapes(torch.zeros(generated), torch.zeros(generated).expand(generated), torch.zeros(target))
    assert str(generated) in str(caught.value)


def test_one_axis_is_refused_wherever_samples_are_passed():
    samples = torch.zeros(4)
    for call in (DriftingLoss(), drifting_loss, functools.partial(mean_shift, temperature=1.0)):
        with pytest.raises(InputError, match=r"shapes? \(4,\)"):
            call(samples, samples)


def test_samples_on_two_devices_are_refused():
    samples = torch.zeros(1, 4, 2)
    for call in (DriftingLoss(), functools.partial(mean_shift, temperature=1.0)):
        with pytest.raises(InputError, match="samples are on cpu and meta: move all to one device"):
            call(samples, samples.to("meta"))


@pytest.mark.parametrize("shape", [(4, 2), (3, 4, 2)])
def test_samples_that_fit_pass(shape):
    check_shapes(torch.zeros(shape), torch.zeros(*shape[:-2], 7, 2), torch.zeros(*shape[:-2], 1, 2))


def test_weights_are_joined_in_order_with_ones_where_missing():
    first, second = torch.zeros(2, 3, 5), torch.zeros(2, 1, 5)
    joined = join_weights((first, None), (second, torch.tensor([[2], [3]])))
    assert joined.tolist() == [[1, 1, 1, 2], [1, 1, 1, 3]]
    assert joined.dtype == torch.float32
    assert join_weights((first, None), (second, None)) is None


def test_joined_weights_have_the_precision_of_the_samples_and_never_half():
    weights = torch.ones(3)
    assert join_weights((torch.zeros(3, 2).double(), weights)).dtype == torch.float64
    assert join_weights((torch.zeros(3, 2).half(), weights)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1), (1, 3)])
def test_weights_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"pass \(2, 3\)"):
        join_weights((torch.zeros(2, 3, 5), torch.ones(shape)))


def test_full_precision_is_float32_or_float64():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert full_precision(torch.zeros(1, dtype=dtype)).dtype == torch.float32
    double = torch.zeros(1, dtype=torch.float64)
    assert full_precision(double) is double


def test_constant_functions_know_neither_autograd_nor_autocast():
    @constant
    def product(x):
        return x @ x

    x = torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    assert not product(x).requires_grad
    assert product.__name__ == "product"


def test_nearest_name_is_suggested_for_a_typing_error():
    assert nearest_name("Swis_rol", ["checkerboard", "swiss_roll"]) == "swiss_roll"
    assert nearest_name(3, ["toy"]) == "toy"


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_that_are_not_positive_are_refused(temperature):
    samples = torch.zeros(1, 3, 2)
    with pytest.raises(InputError, match="temperature is"):
        mean_shift(samples, samples, temperature=temperature)
    with pytest.raises(InputError, match="temperatures is"):
        drifting_loss(samples, samples, temperatures=(0.1, temperature))
    with pytest.raises(InputError, match="temperatures is"):
        DriftingLoss(temperatures=(temperature,))


def test_an_empty_list_of_temperatures_is_refused():
    with pytest.raises(InputError, match="at least one"):
        drifting_loss(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), temperatures=())


@pytest.mark.parametrize("temperatures", [0.05, "0.05", torch.tensor(0.05), (0.05, "low"), None])
def test_temperatures_that_are_no_sequence_of_numbers_are_refused(temperatures):
    samples = torch.zeros(1, 3, 2)
    for call, arguments in ((DriftingLoss, ()), (drifting_loss, (samples, samples))):
        with pytest.raises(InputError, match=r"temperatures is .*0\.05|temperatures is None"):
            call(*arguments, temperatures=temperatures)


@pytest.mark.parametrize("field", ["mean-shift", MeanShift, None])
def test_a_name_or_a_class_in_place_of_a_field_is_refused(field):
    samples = torch.zeros(1, 3, 2)
    for call in (DriftingLoss, Lookahead, lambda field: drifting_loss(samples, samples, field=field)):
        with pytest.raises(InputError, match=r"field is .*: pass a drift field, such as MeanShift\(\)"):
            call(field=field)


@pytest.mark.parametrize("argument", ["positives", "unconditional", "generated_negatives"])
def test_loss_refuses_samples_of_another_feature_size(argument):
    samples = {"generated": torch.zeros(2, 3, 4), "positives": torch.zeros(2, 5, 4)}
    with pytest.raises(InputError, match="feature size"):
        drifting_loss(**{**samples, argument: torch.zeros(2, 5, 6)})


@pytest.mark.parametrize("argument", ["generated_weights", "positive_weights", "unconditional_weights"])
def test_loss_refuses_weights_of_another_shape(argument):
    samples = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 6, 4)
    with pytest.raises(InputError, match="weights have shape"):
        drifting_loss(*samples, **{argument: torch.ones(2, 4)})


@pytest.mark.parametrize("argument", ["positive_weights", "negative_weights"])
def test_field_refuses_weights_of_another_shape(argument):
    with pytest.raises(InputError, match="weights have shape"):
        mean_shift(torch.zeros(3, 2), torch.zeros(5, 2), temperature=1.0, **{argument: torch.ones(4)})


def test_field_refuses_samples_of_another_feature_size():
    with pytest.raises(InputError, match="feature size"):
        mean_shift(torch.zeros(3, 2), torch.zeros(5, 3), temperature=1.0)


def test_drift_norms_without_a_temperature_are_refused():
    samples = torch.randn(1, 3, 2), torch.randn(1, 5, 2)
    with pytest.raises(InputError, match=r"no entry for temperature 0\.2"):
        drifting_loss(*samples, temperatures=(0.05, 0.2), drift_norms={0.05: torch.ones(())})


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 2)), [[0.0, 1.0]], None, (torch.zeros(4, 2),), {"low": [0.0]}], ids=lambda value: type(value).__name__
)
def test_samples_that_are_no_tensors_are_refused(wrong):
    samples, sentence = torch.zeros(4, 2), "samples are a .*: pass a tensor, or to DriftingLoss tensors by name"
    for call in (DriftingLoss(), drifting_loss, functools.partial(mean_shift, temperature=0.1)):
        for pair in ((wrong, samples), (samples, wrong), (wrong, wrong)):
            with pytest.raises(InputError, match=sentence):
                call(*pair)


NO_NUMBERS = {
    "temperature": lambda value: mean_shift(torch.zeros(4, 2), torch.zeros(4, 2), temperature=value),
    "drift_clip": lambda value: DriftingLoss(drift_clip=value),
    "affinity_floor": lambda value: MeanShift(affinity_floor=value),
    "weight": lambda value: Lookahead(weight=value),
    "learning_rate": check_learning_rate,
}


@pytest.mark.parametrize("value", ["1e-3", [0.1]])
@pytest.mark.parametrize("name", NO_NUMBERS)
def test_texts_and_lists_in_place_of_a_number_are_refused(name, value):
    with pytest.raises(InputError, match=re.escape(f"{name} is {value!r}: pass ")):
        NO_NUMBERS[name](value)


@pytest.mark.parametrize("argument", ["positives", "unconditional", "generated_negatives"])
def test_features_of_other_names_are_refused(argument):
    features = {"low": torch.zeros(2, 3, 1, 4), "high": torch.zeros(2, 3, 1, 4)}
    with pytest.raises(InputError, match=r"\['low'\] and \['high', 'low'\]"):
        DriftingLoss()(**{"generated": features, "positives": features, argument: {"low": features["low"]}})


@pytest.mark.parametrize("seed", [1.5, 3.0, float("nan"), "1", -1, 2**31])
def test_seed_that_is_no_whole_number_in_range_is_refused(seed):
    with pytest.raises(InputError, match=f"seed is {seed!r}: pass a whole number from 0 to 2147483647"):
        check_seed(seed)


@pytest.mark.parametrize("seed", [0, 2**31 - 1, np.int64(7)])
def test_every_whole_number_in_range_is_a_seed(seed):
    check_seed(seed)
