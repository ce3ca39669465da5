"""How commands end that cannot go on: one sentence, the right status, and nothing in the way of the corrected command."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from drifting import _files, runs
from drifting._files import LOCK, atomic_path, check_space, clear_scratch, hold
from drifting.checkpoint import checkpoints, load_tensors, save_tensors
from drifting.cli import SteadyStream
from drifting.errors import InputError, StorageError
from drifting.runs.folder import claim
from drifting.training.loop import stopping_signals
from drifting.training.recorder import MetricsLog, Recorder
from drifting.training.state import DivergenceError

# Signals that the tests themselves are told to ignore, such as by nohup, would be ignored by what they start.
HEEDING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
SMALL = f"""
{HEEDING}
import sys
from drifting import presets
from drifting.runs import pictures as drawing
from drifting.cli import main
from tests.support.small_runs import small_toy
import dataclasses
config = dataclasses.replace(presets.adjust(small_toy(), steps=10**6), checkpoint_every=10**5)
presets.PRESETS["toy"] = dataclasses.replace(presets.PRESETS["toy"], make=lambda dataset=None, data=None: config)
drawing.draw_pictures = lambda config, folder, **_: []
main()
"""
ROOT = Path(__file__).parents[2]


small = pytest.mark.usefixtures("small_presets", "no_pictures", "here")


def _module(*arguments: str, **options) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, **options}
    return subprocess.run([sys.executable, "-m", "drifting", *arguments], check=False, timeout=120, **options)


# One process per folder


@small
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
def test_folder_that_a_process_works_in_is_refused_until_it_is_killed(here, command, more):
    code = "from pathlib import Path; from drifting._files import hold; import time\n"
    code += "with hold(Path('run'), 'x'): print(1, flush=True); time.sleep(100)"
    assert command("train", "toy", "--save-dir", "run").status == 0
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for arguments in (["train", "toy", "--save-dir", "run", *more], ["evaluate", "run"]):
            result = command(*arguments)
            assert result.status == 2
            holder = rf"process {other.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
            assert re.search(rf"'run', (which already|in which {holder} is at work: wait until)", result.err), result.err
        other.kill()
    after = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file() and path.name != LOCK}
    assert after == before
    assert command("train", "toy", "--save-dir", "run", "--overwrite").status == 0
    assert not (here / "run" / LOCK).exists()


def test_lock_leaves_no_folder_behind_and_keeps_one_that_has_something(tmp_path):
    with hold(tmp_path / "a" / "b", "x"), hold(tmp_path / "a" / "b", "x"):
        assert (tmp_path / "a" / "b" / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "a", "x"):
        (tmp_path / "a" / "mine").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]


def test_another_thread_is_refused(tmp_path):
    found = []

    def enter():
        try:
            with hold(tmp_path, "x"):
                pass
        except InputError as error:
            found.append(str(error))

    with hold(tmp_path, "x"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(found) == 1
    enter()
    assert len(found) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_file_system_without_locks_is_worked_on(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path, "x"):
        pass
    assert list(tmp_path.iterdir()) == []


# What ends before its first checkpoint


@small
def test_lock_of_a_killed_process_is_no_run(here, command):
    (here / "x").mkdir()
    (here / "x" / LOCK).write_text("process 1 on nowhere since long ago\n")
    assert command("train", "toy", "--save-dir", "x").status == 0


@small
@pytest.mark.parametrize(
    "ending", [DivergenceError("it diverged"), MemoryError("no more"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")]
)
def test_end_before_the_first_checkpoint_leaves_nothing(here, command, monkeypatch, ending):
    def end(self, *_, **__):
        raise ending

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "save", end)
        result = command("train", "toy", "--save-dir", "x")
    assert result.status == (130 if isinstance(ending, KeyboardInterrupt) else 1)
    assert re.fullmatch(r"drifting: [^\n]{1,300}\n", result.err)
    assert "resume" not in result.err
    assert list(here.iterdir()) == []


@small
def test_run_that_was_killed_before_its_first_checkpoint_refuses_no_other(here, command, monkeypatch):
    def killed(*_, **__):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "save", killed)
        assert command("train", "toy", "--save-dir", "x").status == 9
    assert (here / "x" / "config.json").exists()
    (here / "x" / "notes.txt").write_text("mine")
    assert command("train", "toy", "--save-dir", "x", "--learning-rate", "0.01").status == 0
    assert json.loads((here / "x" / "config.json").read_text())["schedule"]["learning_rate"] == 0.01
    assert (here / "x" / "notes.txt").read_text() == "mine"


@small
def test_configuration_that_is_no_runs_is_not_deleted(here, command):
    (here / "x").mkdir()
    (here / "x" / "config.json").write_text('{"mine": 1}')
    assert command("train", "toy", "--save-dir", "x").status == 2
    assert (here / "x" / "config.json").read_text() == '{"mine": 1}'


@small
@pytest.mark.parametrize(
    "ending",
    [
        *(DivergenceError("it diverged"), MemoryError("no more"), KeyboardInterrupt()),
        *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EROFS, errno.EACCES)),
    ],
)
def test_end_after_a_checkpoint_tells_which_and_how_to_go_on(here, command, monkeypatch, ending):
    append = MetricsLog.append

    def end(self, **values):
        if values["step"] == 4:
            raise ending
        append(self, **values)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", end)
        result = command("train", "toy", "--save-dir", "x")
    assert "checkpoint step-00000002 is whole" in result.err
    if isinstance(ending, DivergenceError):  # it would diverge again
        assert "start again with --overwrite" in result.err
    else:
        hint = re.search(r"go on with: drifting (.*)\n", result.err, re.I)
        assert hint is not None
        assert command(*hint[1].split()).status == 0
        assert checkpoints(here / "x" / "checkpoints")[-1].name == "step-00000006"


@small
def test_scratch_of_killed_writers_goes_on_resume_and_overwrite(here, command):
    assert command("train", "toy", "--save-dir", "x").status == 0
    for more in ("--resume", "--overwrite"):
        for place in (here / "x", here / "x" / "checkpoints"):
            (place / ".writing-abcdefgh").mkdir()
            (place / ".writing-abcdefgh" / "half").touch()
        assert command("train", "toy", "--save-dir", "x", more).status == 0
        assert [path for path in (here / "x").rglob(".*")] == []


@small
def test_finished_run_that_is_resumed_says_so(command):
    assert "is finished" not in command("train", "toy", "--save-dir", "x").out
    assert "x is finished, with all 6 steps: pass a higher --steps" in command("train", "toy", "--save-dir", "x", "--resume").out


# Disks


@small
def test_files_that_may_not_grow_end_a_run_in_a_sentence(here, command):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        result = command("train", "toy", "--save-dir", "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.status == 1
    assert re.fullmatch(
        r"drifting: a file cannot be written or read \(file too large.*Make room, then start the same command again\n", result.err
    )
    assert not (here / "x").exists()


def test_fault_inside_safetensors_is_one_of_the_disk(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of the library, whatever it is
            save_tensors(tmp_path / "a", {"a": torch.zeros(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "file too large" in str(_files.storage_fault(caught.value))
    assert _files.storage_fault(ValueError("no")) is None
    assert _files.storage_fault(ConnectionResetError(errno.ECONNRESET, "gone")) is None


@small
def test_folder_that_is_gone_is_reported(here, command, monkeypatch):
    def remove(self):
        shutil.rmtree(self.folder)
        raise FileNotFoundError(errno.ENOENT, "No such file", str(self.folder))

    monkeypatch.setattr(Recorder, "save", remove)
    result = command("train", "toy", "--save-dir", "x")
    assert (result.status, result.err) == (1, "drifting: the run folder 'x' is gone, with all that was in it: start again\n")


@small
def test_space_for_two_checkpoints_is_looked_for_before_training(here, command, monkeypatch):
    usage = shutil.disk_usage(here)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    result = command("train", "toy", "--save-dir", "x")
    assert result.status == 1
    assert re.search(r"save_dir is 'x', where .* MB are needed and 0 MB free: make room", result.err)
    assert list(here.iterdir()) == []
    with pytest.raises(StorageError, match="where 1 MB are needed"):
        check_space(here, 10**6, "out")


@pytest.mark.parametrize("place", ["/proc/x", "/dev/full/x", "n" * 300])
def test_place_where_nothing_can_be_is_refused(here, command, place):
    result = command("train", "toy", "--save-dir", place)
    assert result.status == 2
    assert "where nothing can be written" in result.err
    assert list(here.iterdir()) == []


def test_what_takes_a_place_is_on_the_disk_before(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append(os.readlink(f"/proc/self/fd/{number}")), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda one, other: (events.append("replace"), replace(one, other)))
    with atomic_path(tmp_path / "step") as scratch:
        scratch.mkdir()
        (scratch / "state").write_text("x")
    names = [Path(event).name for event in events]
    assert names == ["state", "step", "replace", tmp_path.name]


def test_scratch_of_others_stays(tmp_path):
    for name in (".writing-a", "runs/.writing-b", ".written"):
        (tmp_path / name).mkdir(parents=True)
    clear_scratch(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".writing-b", ".written", "runs"]


# Streams and signals


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_output_that_cannot_be_written_ends_in_a_sentence():
    with open("/dev/full", "w") as full:
        result = _module("--version", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert result.returncode == 1
    assert result.stderr == (
        "drifting: the output could not be written (No space left on device): files are whole, send the output elsewhere\n"
    )


@pytest.mark.parametrize("stream", ["1", "2"])
def test_closed_stream_ends_nothing(stream):
    code = f"import os, sys; os.close({stream}); os.execv(sys.executable, [sys.executable, '-m', 'drifting', '--version'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")


def test_reader_that_leaves_is_no_fault(capfd):
    read, write = os.pipe()
    os.close(read)
    stream = SteadyStream(os.fdopen(write, "w", encoding="ascii"))
    for _ in range(3):
        stream.write("a letter \u2022 beyond ASCII\n" * 1000)
        stream.flush()
    assert stream.complaint() is None
    assert stream.fault is not None


def test_hang_up_is_a_signal_to_stop_unless_it_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert signal.SIGHUP in stopping_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signal.SIGHUP not in stopping_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow  # test_train.py sends the signals to its own process
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_signals_stop_a_run_that_then_goes_on(tmp_path, number):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    arguments = [sys.executable, "-c", SMALL, "train", "toy", "--save-dir", str(tmp_path / "x")]
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        log = tmp_path / "x" / "metrics.jsonl"
        while not log.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert re.fullmatch(r"drifting: Stopped at step \d+ of 1000000; everything is saved. Go on with: .* --resume\n", said)
    assert len(checkpoints(tmp_path / "x" / "checkpoints")) == 1


def test_stop_during_imports_is_a_sentence():
    code = f"""
{HEEDING}
import os, sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stop())
sys.argv = ["drifting", "sample", "nothing"]
from drifting.cli import main
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (
        130,
        "drifting: Stopped; nothing of this step is kept. Start the same command again.\n",
    )


def test_trained_network_in_the_folder_is_no_unstarted_run(toy_copy, tiny_toy):
    shutil.rmtree(toy_copy / "checkpoints")
    with pytest.raises(InputError, match="already holds a run"):
        claim(toy_copy, tiny_toy, resume=False, overwrite=False)
    assert load_tensors(toy_copy / "generator.safetensors")
    assert runs.load(toy_copy)
