import dataclasses
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from drifting.checkpoint import checkpoints, load_tensors
from drifting.config import RunConfig
from drifting.data.sources import reference_samples
from drifting.errors import InputError
from drifting.metrics.distances import energy_distance, mean_distance
from drifting.runs.train import build_encoder, build_positives
from drifting.sampling import sample
from drifting.training import recorder as recording
from drifting.training.loop import Step, train
from drifting.training.recorder import SNAPSHOT_SEED, Recorder, Resources, RunningMean, snapshot_steps
from drifting.training.state import DivergenceError, TrainingState


@pytest.fixture
def make(tmp_path, tiny_toy) -> Callable[..., Recorder]:
    def recorder(config: RunConfig = tiny_toy, keep: int = 2) -> Recorder:
        state = TrainingState(config.build_generator(), config.schedule, config.seed)
        positives = build_positives(config, build_encoder(config))
        reference = reference_samples(config.data.source(config.seed), 40, seed=1)
        return Recorder(tmp_path, state, positives, facts={"a": 1}, reference=reference, snapshot_samples=40, keep=keep)

    return recorder


def _advance(recorder: Recorder, config: RunConfig, steps: int, each: Callable = lambda step: None) -> None:
    encoder, loss = build_encoder(config), config.loss.build()
    positives = build_positives(config, encoder)
    for step in train(recorder.state, positives, encoder, loss, dataclasses.replace(config.schedule, steps=steps)):
        recorder.observe(step)
        each(step)


def test_running_mean_is_a_mean_that_starts_afresh_when_taken():
    means = RunningMean()
    for value in (1.0, 2.0, 6.0):
        means.add({"a": torch.tensor(value), "b": torch.tensor(-value)})
    assert means.take() == {"a": 3.0, "b": -3.0}
    means.add({"a": torch.tensor(5.0), "b": torch.tensor(0.0)})
    assert means.take() == {"a": 5.0, "b": 0.0}


def test_running_mean_does_not_change_what_it_is_given():
    means, value = RunningMean(), torch.tensor(1.0)
    means.add({"a": value})
    means.add({"a": torch.tensor(3.0)})
    assert float(value) == 1


def test_metrics_line_is_the_average_since_the_last_line(make, tiny_toy):
    recorder, losses = make(), []

    def each(step):
        losses.append(float(step.report.loss.detach()))
        if step.number in (2, 5):
            recorder.write_metrics(step, extra=7.0)

    _advance(recorder, tiny_toy, 5, each)
    first, second = recorder.log.read()
    assert (first["step"], second["step"]) == (2, 5)
    assert first["loss"] == pytest.approx(sum(losses[:2]) / 2)
    assert second["loss"] == pytest.approx(sum(losses[2:]) / 3)
    assert first["extra"] == 7
    assert {f"drift_norm/sample/{temperature:g}" for temperature in tiny_toy.loss.temperatures} <= first.keys()


def test_spread_of_the_kernel_is_written_for_every_temperature(make, tiny_toy):
    recorder = make()
    _advance(recorder, tiny_toy, 1, recorder.write_metrics)
    (line,) = recorder.log.read()
    for temperature in tiny_toy.loss.temperatures:
        assert 0 <= line[f"positive_share/sample/{temperature:g}"] <= 1
        assert 1 <= line[f"positive_neighbors/sample/{temperature:g}"] <= 32


def test_snapshot_holds_the_same_samples_each_time_and_measures_them(make):
    recorder = make()
    distance = recorder.take_snapshot()
    expected = sample(recorder.state.averaged, 40, seed=SNAPSHOT_SEED)
    assert torch.equal(recorder.snapshots[0], expected)
    assert distance == pytest.approx(energy_distance(expected, recorder._reference))


def test_distances_within_the_reference_are_computed_once(make, monkeypatch):
    recorder, pairs = make(), []
    monkeypatch.setattr(recording, "mean_distance", lambda x, y: pairs.append((x, y)) or 0.25)
    distances = [recorder.take_snapshot() for _ in range(3)]
    ((x, y),) = pairs
    assert x is recorder._reference is y
    snapshot = recorder.snapshots[0].flatten(1)
    expected = 2 * mean_distance(snapshot, x) - mean_distance(snapshot, snapshot) - 0.25
    assert distances == [pytest.approx(expected)] * 3


def test_state_goes_through_the_files_bit_for_bit(make, tiny_toy, assert_same_tensors):
    first = make()
    first.take_snapshot()
    _advance(first, tiny_toy, 3)
    first.take_snapshot()
    first.save()
    second = make()
    second.resume(steps=100)
    assert second.state.step == 3
    assert_same_tensors(second.state.tensors(), first.state.tensors())
    assert_same_tensors(second.snapshots, first.snapshots)


def test_resuming_goes_back_to_the_newest_checkpoint_in_log_and_snapshots(make, tiny_toy):
    recorder = make()

    def each(step):
        recorder.write_metrics(step)
        recorder.take_snapshot()
        if step.number == 2:
            recorder.save()

    _advance(recorder, tiny_toy, 4, each)
    assert sorted(recorder.snapshots) == [1, 2, 3, 4]
    assert sorted(load_tensors(recorder.folder / "snapshots.safetensors")) == ["1", "2"]
    fresh = make()
    fresh.resume(steps=100)
    assert (fresh.state.step, sorted(fresh.snapshots)) == (2, [1, 2])
    assert [line["step"] for line in fresh.log.read()] == [1, 2]


def test_keep_bounds_the_checkpoints_and_the_newest_is_resumed(make, tiny_toy):
    recorder = make(keep=2)
    _advance(recorder, tiny_toy, 5, lambda step: recorder.save())
    assert [path.name for path in checkpoints(recorder.folder / "checkpoints")] == ["step-00000004", "step-00000005"]
    fresh = make()
    fresh.resume(steps=100)
    assert fresh.state.step == 5


def test_checkpoint_carries_the_configuration(make):
    assert (make().save() / "state.json").read_text().split() == ["{", '"a":', "1", "}"]


def test_folder_without_checkpoints_cannot_be_resumed(make):
    with pytest.raises(InputError, match="holds no checkpoint to resume: start again with --overwrite"):
        make().resume(steps=100)


def test_run_can_be_resumed_when_its_snapshots_were_lost(make, tiny_toy):
    recorder = make()
    _advance(recorder, tiny_toy, 2)
    recorder.save()
    (recorder.folder / "snapshots.safetensors").unlink()
    fresh = make()
    fresh.resume(steps=100)
    assert fresh.state.step == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_state_whose_last_drift_was_not_finite_is_not_saved(make, tiny_toy, value):
    recorder = make()
    recorder.save()
    with torch.no_grad():
        recorder.state.generator.output.bias.fill_(value)
    _advance(recorder, tiny_toy, 1)
    with pytest.raises(DivergenceError, match="at step 1, in feature 'sample'"):
        recorder.save()
    assert [path.name for path in checkpoints(recorder.folder / "checkpoints")] == ["step-00000000"]


def test_weights_that_became_nan_in_the_last_update_are_not_saved(make, tiny_toy):
    recorder = make()
    _advance(recorder, tiny_toy, 1)
    with torch.no_grad():
        recorder.state.generator.output.bias.fill_(math.nan)
    with pytest.raises(DivergenceError):
        recorder.save()


def test_snapshot_that_is_not_finite_has_no_distance(make):
    recorder = make()
    recorder.take_snapshot()
    with torch.no_grad():
        recorder.state.averaged.output.bias.fill_(math.nan)
    assert math.isnan(recorder.take_snapshot())


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (1, 24), (10, 24), (2000, 24), (100, 1), (6, 2)])
def test_snapshots_are_within_the_run_and_include_its_end(steps, count):
    taken = snapshot_steps(steps, count)
    assert max(taken) == steps
    assert min(taken) >= 1
    assert len(taken) <= count


def test_snapshots_are_dense_at_the_start():
    taken = sorted(snapshot_steps(2000, 24))
    gaps = [after - before for before, after in pairwise(taken)]
    assert len(taken) == 24
    assert gaps == sorted(gaps)


def _with_averages(config: RunConfig, **schedule) -> RunConfig:
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, other_ema_decays=(0.0, 0.3), **schedule))


def test_average_nearest_to_the_reference_is_chosen(make, tiny_toy):
    config = _with_averages(tiny_toy, learning_rate=0.05)
    recorder = make(config)
    _advance(recorder, config, 6)
    own = {decay: sample(average.module, 40, seed=SNAPSHOT_SEED) for decay, average in recorder.state.averages.items()}
    distances = {decay: energy_distance(samples, recorder._reference) for decay, samples in own.items()}
    assert len(set(distances.values())) == 3
    best = min(distances, key=distances.get)
    figures = recorder.choose_average()
    assert figures == {
        "ema_decay": best,
        "energy_distance": distances[best],
        **{f"energy_distance/ema-{decay}": distance for decay, distance in distances.items()},
    }
    assert recorder.state.averaged is recorder.state.averages[best].module
    assert torch.equal(recorder.snapshots[6], own[best])


def test_worse_averages_are_not_chosen(make, tiny_toy):
    config = _with_averages(tiny_toy)
    for decay in (0.9, 0.0, 0.3):
        recorder = make(config)
        for other, average in recorder.state.averages.items():
            with torch.no_grad():
                average.module.output.bias.fill_(0.0 if other == decay else 100.0)
        assert recorder.choose_average()["ema_decay"] == recorder.state.chosen == decay


def test_single_average_needs_no_choice(make):
    recorder = make()
    assert recorder.choose_average() == {}
    assert recorder.snapshots == {}


def test_choice_is_made_again_when_a_finished_run_is_resumed(make, tiny_toy):
    config = _with_averages(tiny_toy)
    first = make(config)
    _advance(first, config, 6)
    for decay, average in first.state.averages.items():
        with torch.no_grad():
            average.module.output.bias.fill_(0.0 if decay == 0.3 else 100.0)
    first.save()
    chosen = first.choose_average()["ema_decay"]
    finished, unfinished = make(config), make(config)
    finished.resume(steps=6)
    unfinished.resume(steps=7)
    assert (finished.state.chosen, unfinished.state.chosen) == (chosen, 0.9)
    assert chosen == 0.3


def test_snapshot_of_a_guided_generator_is_made_at_the_scale_of_the_run(tmp_path, tiny_digits):
    drawn = {"guidance_exponent": 1.0, "guidance_scale": 2.0, "unconditional": 5}
    config = dataclasses.replace(tiny_digits, schedule=dataclasses.replace(tiny_digits.schedule, **drawn))
    state = TrainingState(config.build_generator(), config.schedule, config.seed)
    options = {"facts": {}, "reference": torch.zeros(10, 1, 8, 8), "snapshot_samples": 20, "keep": 1}
    recorder = Recorder(tmp_path, state, None, **options, guidance_scale=config.schedule.scale_of_samples())
    recorder.take_snapshot()
    assert torch.equal(recorder.snapshots[0], sample(state.averaged, 20, seed=SNAPSHOT_SEED, guidance_scale=2.0))
    assert not torch.equal(recorder.snapshots[0], sample(state.averaged, 20, seed=SNAPSHOT_SEED))


def test_resources_are_counted_from_where_they_are_made(monkeypatch):
    clock = iter([10.0, 14.0, 30.0])
    monkeypatch.setattr("drifting.training.recorder.time.perf_counter", lambda: next(clock))
    resources = Resources(torch.device("cpu"), 100, 64)
    first, second = resources.used(Step(108, None)), resources.used(Step(110, None, stored_bytes=7))
    assert (first["mean_steps_per_second"], first["samples_per_second"]) == (2, 128)
    assert (second["mean_steps_per_second"], second["samples_per_second"]) == (0.5, 32)
    assert "stored_feature_bytes" not in first
    assert second["stored_feature_bytes"] == 7


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own figure to compare with")
def test_peak_memory_is_that_of_the_process_in_bytes():
    used = Resources(torch.device("cpu"), 0, 1).used(Step(1, None))["peak_memory_bytes"]
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert used == pytest.approx(1024 * int(kilobytes), rel=0.05)
