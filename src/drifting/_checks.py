"""Checks of arguments (shapes, weights, names, devices, memory) and conversions of features."""

import difflib
import functools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting._torch import first_calls
from drifting.errors import InputError

# Compute precisions of networks in training, see `training.step`, and optimizers, see `training.state`.
PRECISIONS: tuple[str, ...] = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "muon")
# Range of temperatures by which float32 can divide distances without overflow.
_COLDEST, _HOTTEST = 1e-30, 1e30
P = ParamSpec("P")
R = TypeVar("R")

# One tensor [n, d] or [l, n, d], or named tensors.
Features = Tensor | Mapping[str, Tensor]

first_calls()


def constant(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without autograd and without autocast: drifts have no gradient and need full precision."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), "cpu")
        has_autocast = torch.amp.is_autocast_available(device)  # the device meta has none
        with torch.no_grad(), torch.autocast(device, enabled=False) if has_autocast else nullcontext():
            return function(*args, **kwargs)

    return run


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute products of float32 matrices in float32 in the block, even if TF32 or bfloat16 was switched on globally for speed."""
    modules = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    # Releases before 2.9 have one setting for all devices. Newer ones refuse to read it where a device has one of its own.
    settings = [(module, module.fp32_precision) for module in modules if hasattr(module, "fp32_precision")]
    overall = None if settings else torch.get_float32_matmul_precision()
    try:
        for module, _ in settings:
            module.fp32_precision = "ieee"
        if overall is not None:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        for module, precision in settings:
            module.fp32_precision = precision
        if overall is not None:
            torch.set_float32_matmul_precision(overall)


def not_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Keep `torch.compile` out of a function. `torch.compiler.disable` itself would load the compiler, which takes 2 seconds."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return cast(Callable[P, R], torch.compiler.disable(function))(*args, **kwargs)
        return function(*args, **kwargs)

    # These let the error of fullgraph=True name the function and the reason.
    reason = "it manages tiles and memory of its own, so leave it out of the compiled function"
    run.__dict__.update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)
    return run


def check_tensors(*samples: object) -> None:
    """Raise InputError unless all samples are tensors."""
    wrong = next((type(each).__name__ for each in samples if not isinstance(each, Tensor)), None)
    if wrong is not None:
        raise InputError(f"samples are a {wrong}: pass a tensor, or to DriftingLoss tensors by name, {{'layer4': features}}")


def check_shapes(generated: Tensor, *targets: Tensor) -> None:
    """Raise InputError unless all samples are tensors of one device, precision, groups and feature size, and none is empty."""
    check_tensors(generated, *targets)
    for target in targets:
        if target.device != generated.device:
            raise InputError(f"samples are on {generated.device} and {target.device}: move all to one device")
        if full_precision(target[..., :0]).dtype != full_precision(generated[..., :0]).dtype:
            raise InputError(f"samples have dtypes {generated.dtype} and {target.dtype}: pass all in float64, or none")
        if target.ndim != generated.ndim or generated.ndim not in (2, 3):
            raise InputError(
                f"samples have shapes {tuple(generated.shape)} and {tuple(target.shape)}: pass all as [n, d] or all as [g, n, d]"
            )
        if target.shape[-1] != generated.shape[-1] or target.shape[:-2] != generated.shape[:-2]:
            raise InputError(
                f"samples have shapes {tuple(generated.shape)} and {tuple(target.shape)}: "
                "groups and feature size must agree, so compute both in the same feature space"
            )
        if target.numel() == 0 or generated.numel() == 0:
            raise InputError(f"samples have shapes {tuple(generated.shape)} and {tuple(target.shape)}: pass at least one of each")


def check_feature_maps(generated: Mapping[str, Tensor], *others: Mapping[str, Any] | None) -> None:
    """Raise InputError unless all have the same feature names, with shapes [labels, samples, locations, channels]."""
    if not generated:
        raise InputError("features are {}: pass at least one feature map")
    for other in others:
        if other is not None and other.keys() != generated.keys():
            raise InputError(
                f"features are named {sorted(other)} and {sorted(generated)}: encode all samples with the same encoder"
            )
    for name, features in generated.items():
        if features.ndim != 4:
            raise InputError(f"feature '{name}' has shape {tuple(features.shape)}: pass [labels, samples, locations, channels]")


def _named(features: Features) -> Mapping[str, Tensor]:
    named = features if isinstance(features, Mapping) else {"sample": features}
    check_tensors(*named.values())
    return named


def feature_maps(features: Features) -> Mapping[str, Tensor]:
    """Return named features as [labels, samples, locations, channels], from [n, d], [l, n, d] or [l, n, k, d]."""
    shaped = {2: lambda value: value[None, :, None], 3: lambda value: value[:, :, None]}
    return {name: shaped.get(value.ndim, lambda value: value)(value) for name, value in _named(features).items()}


def flat_feature_maps(features: Features, labels: Tensor, what: str) -> dict[str, Float[Tensor, "b k _"]]:
    """Return a flat batch as named [samples, locations, channels], or raise InputError unless each sample has a label."""
    maps = {name: value[:, None] if value.ndim == 2 else value for name, value in _named(features).items()}
    for name, value in maps.items():
        if value.ndim != 3 or labels.shape != (len(value),):
            shapes = f"labels of shape {tuple(labels.shape)} for features '{name}' of shape {tuple(value.shape)}"
            raise InputError(f"{what} samples have {shapes}: pass features [b, d] or [b, k, d], and one label for each")
    return maps


def groups_of_labels(labels: Tensor, positive_labels: Tensor) -> list[tuple[Int[Tensor, "g n"], Int[Tensor, "g p"]]]:
    """Return the indices of the generated samples and positives of each class; classes with equal counts are stacked."""
    if len(labels) == 0:
        raise InputError("labels is empty: pass at least one generated sample")
    rows: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
    for label in labels.unique().tolist():
        ours, theirs = ((all_labels == label).nonzero()[:, 0] for all_labels in (labels, positive_labels))
        if len(theirs) == 0:
            raise InputError(f"labels has class {label}, but the positives have none of it: pass at least one of each")
        found = rows.setdefault((len(ours), len(theirs)), ([], []))
        found[0].append(ours)
        found[1].append(theirs)
    return [(torch.stack(ours), torch.stack(theirs)) for ours, theirs in rows.values()]


def one_group(value: Tensor | None) -> Tensor | None:
    """Return the samples or weights of one problem with a leading axis for its only group."""
    return None if value is None else value[None]


def weighted_mean(values: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """Return the weighted mean of values."""
    return torch.stack([value * (weight / sum(weights)) for value, weight in zip(values, weights, strict=True)]).sum(0)


def check_temperatures(temperatures: Sequence[float]) -> None:
    """Raise InputError unless there is at least one temperature, all are different, and float32 can divide by each."""
    try:
        values = tuple(float(temperature) for temperature in temperatures)
    except (TypeError, ValueError):
        raise InputError(f"temperatures is {temperatures!r}: pass several numbers, such as (0.02, 0.05, 0.2)") from None
    if not values or not all(_COLDEST <= value <= _HOTTEST for value in values):
        raise InputError(f"temperatures is {values}: pass at least one, each above 0, from {_COLDEST:g} to {_HOTTEST:g}")
    if len(set(values)) < len(values):
        raise InputError(f"temperatures is {values}: name each once")


def check_temperature(temperature: float, name: str = "temperature") -> None:
    """Raise InputError unless float32 can divide by the temperature."""
    if not (is_number(temperature) and _COLDEST <= temperature <= _HOTTEST):
        raise InputError(f"{name} is {temperature!r}: pass a number above 0, from {_COLDEST:g} to {_HOTTEST:g}")


def check_loss(
    temperatures: Sequence[float], drift_clip: float | None, field: Any, *samples: Tensor, has_independent: bool = True
) -> None:
    """Raise InputError unless a loss has all that it needs.

    Args:
        temperatures: its temperatures.
        drift_clip: the length to which it shortens drifts; None for no limit.
        field: its drift field.
        samples: those that it is called with.
        has_independent: whether there is an independent generated batch.
    """
    check_tensors(*samples)
    check_temperatures(temperatures)
    check_field(field, has_independent=has_independent)
    if drift_clip is not None and not (is_number(drift_clip) and 0 < drift_clip < math.inf):
        raise InputError(f"drift_clip is {drift_clip!r}: pass a number above 0, such as 3, or None for no limit")


def check_field(field: Any, *, has_independent: bool) -> None:
    """Raise InputError for what is no drift field, or if one needs an independent generated batch, and there is none."""
    if not callable(field) or isinstance(field, type):
        raise InputError(f"field is {field!r}: pass a drift field, such as MeanShift()")
    if getattr(field, "needs_independent_negatives", False) and not has_independent:
        name = type(field).__name__
        raise InputError(
            f"field is {name}, which needs a second generated batch: pass independent_negatives (in a run) or generated_negatives"
        )


def check_row_scale(field: Any, *, normalize_features: bool) -> None:
    """Raise InputError unless rows can have scales of their own with a drift field."""
    if not getattr(field, "supports_row_scale", False):
        raise InputError(f"scale_per_row is True, but field is {type(field).__name__}, which needs one scale: pass MeanShift")
    if not normalize_features:
        raise InputError("scale_per_row is True, but normalize_features is False: leave out one of them")


def join_weights(*parts: tuple[Float[Tensor, "*g _ d"], Tensor | None]) -> Float[Tensor, "*g total"] | None:
    """Concatenate the weights of several sets of samples, with ones for sets without weights; None if no set has any."""
    if all(weights is None for _, weights in parts):
        return None
    joined = []
    for samples, weights in parts:
        if weights is not None and weights.shape != samples.shape[:-1]:
            raise InputError(f"weights have shape {tuple(weights.shape)}: pass {tuple(samples.shape[:-1])}, one per sample")
        check_weights(weights)
        ones = full_precision(samples).new_ones(samples.shape[:-1])
        # On other devices, where values are not checked, negative weights make the result NaN.
        joined.append(ones if weights is None else torch.where(weights >= 0, weights.detach().to(ones), torch.nan))
    return torch.cat(joined, -1)


def check_weights(weights: Tensor | None) -> None:
    """Raise InputError if weights on a CPU are negative or not finite. Reading weights on other devices would wait for them."""
    if weights is None or weights.device.type != "cpu" or weights.numel() == 0:
        return
    lowest, highest = (float(value) for value in weights.detach().aminmax())
    if not 0 <= lowest <= highest < math.inf:
        wrong = lowest if not lowest >= 0 else highest
        raise InputError(f"weights has {wrong:g}: pass numbers from 0 on; a sample of the other sign belongs to the other set")


def full_precision(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def nearest_name(name: object, names: Iterable[str]) -> str:
    """Return the known name most similar to a mistyped one."""
    return max(names, key=lambda known: difflib.SequenceMatcher(None, str(name).lower(), known.lower()).ratio())


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise InputError unless a value is one of several names."""
    names = list(choices)
    if value not in names:
        raise InputError(f"{name} is '{value}', not {' or '.join(names)}: did you mean {nearest_name(value, names)}?")


def check_counts(counts: Mapping[str, int]) -> None:
    """Raise InputError for the first count that is not a whole number from 1."""
    for name, value in counts.items():
        if not is_integer(value):
            raise InputError(f"{name} is {value!r}: pass a whole number")
        if value < 1:
            raise InputError(f"{name} is {value}: pass at least 1")


def is_integer(value: object) -> bool:
    """Return whether a value is an integer of Python or numpy; a truth value is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is a number, or a tensor of one."""
    return isinstance(value, numbers.Real) or (isinstance(value, Tensor) and value.numel() == 1)


def check_positive(name: str, value: float, such_as: float, *, or_zero: bool = False) -> None:
    """Raise InputError unless a number is above 0, or 0 where that is allowed, and finite; `such_as` is a usual value."""
    if not is_number(value) or not (0 < value < math.inf or (or_zero and value == 0)):
        raise InputError(f"{name} is {value!r}: pass {'0 or ' * or_zero}a number above 0, such as {such_as:g}")


def check_noise_scale(value: float, name: str = "noise_scale") -> None:
    """Raise InputError unless noise of this standard deviation can be the input of a network."""
    check_positive(name, value, 1.05)
    if value > 1000:  # far above, squares in the network overflow
        raise InputError(f"{name} is {value!r}: pass at most 1000, such as 1.05")


def check_seed(seed: int) -> None:
    """Raise InputError unless the seed is a whole number that fits every random stream."""
    if not hasattr(seed, "__index__") or not 0 <= seed < 2**31:
        raise InputError(f"seed is {seed!r}: pass a whole number from 0 to {2**31 - 1}")


def check_learning_rate(value: float, name: str = "learning_rate") -> None:
    """Raise InputError unless an optimizer can work with the learning rate."""
    if not (is_number(value) and 0 < value <= 1e30):  # above, the optimizer overflows
        raise InputError(f"{name} is {value!r}: pass a number above 0, such as 1e-3")


def check_optimizer(settings: Any, prefix: str = "") -> None:
    """Raise InputError unless there is an optimizer of this name, which can work with its settings.

    Args:
        settings: what has `optimizer`, `learning_rate`, `betas`, `weight_decay`, `warmup_steps` and `max_grad_norm`; the last two
            may be None.
        prefix: what stands before the name of a setting in the error.
    """
    check_choice(f"{prefix}optimizer", settings.optimizer, OPTIMIZERS)
    if len(settings.betas) != 2 or not all(0 <= beta < 1 for beta in settings.betas):
        raise InputError(f"{prefix}betas is {tuple(settings.betas)}: pass two numbers from 0 to below 1, such as 0.9 and 0.95")
    check_learning_rate(settings.learning_rate, f"{prefix}learning_rate")
    check_positive(f"{prefix}weight_decay", settings.weight_decay, 0.01, or_zero=True)
    if settings.max_grad_norm is not None:
        check_positive(f"{prefix}max_grad_norm", settings.max_grad_norm, 2.0)
    check_steps(f"{prefix}warmup_steps", settings.warmup_steps)


def check_steps(name: str, value: int | None) -> None:
    """Raise InputError for a negative number of steps; None is allowed."""
    if value is not None and value < 0:
        raise InputError(f"{name} is {value}: pass 0 for none, or more")


def check_device(name: str) -> None:
    """Raise InputError unless this machine has the device."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device is '{name}': pass cpu, cuda, cuda:1 or mps") from None
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present.get(device.type, 0):
        raise InputError(f"device is '{name}', which this machine does not offer: pass --device cpu")


def check_computes(precision: str, device: torch.device | str) -> None:
    """Raise InputError if a device has no instructions for bfloat16, which torch would emulate slowly or refuse in a product."""
    place = torch.device(device)
    if precision == "float32" or place.type != "cuda":
        return
    with torch.cuda.device(place):
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise InputError(f"precision is '{precision}', which the device {place} does not compute: pass float32")


_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Return the bytes that this process can still allocate, also within the limit of its container; None if unknown."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        found.append(int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text()))
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(found)) if found else None


def check_memory(need: int, what: str, fix: str) -> None:
    """Raise InputError unless there is enough memory for data.

    Args:
        need: number of bytes.
        what: subject of the error message, such as "image_size is 64, at which 9 images".
        fix: what to do if the data do not fit.
    """
    free = available_memory()
    if free is not None and need > free:
        raise InputError(f"{what} need {need / 2**30:,.1f} GiB of memory, but {free / 2**30:,.1f} GiB are free: {fix}")
