"""The command line as torchrun starts it: how a run of two processes ends early, and is gone on with."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drifting.checkpoint import checkpoints, load_checkpoint
from tests.distributed.small_command import main

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,  # test_processes.py has the sentences, test_runs_together.py the runs, in processes that are there already
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


class Launched:
    """A command of two processes."""

    def __init__(self, log: Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "tests.distributed.small_command", *map(str, arguments)]
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    def wait_for(self, path: Path) -> None:
        for _ in range(1800):
            if path.exists():
                return
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"{path} did not appear: {self._log.read_text()}")

    def send(self, number: int, rank: int | None = None) -> None:
        """Send a signal to the launcher, or to one of the processes that it started."""
        os.kill(self._process.pid if rank is None else self._of_rank(rank), number)

    def _of_rank(self, rank: int) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        found = [child for child in children if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes()]
        return int(found[0])

    def ends_with(self) -> tuple[int, str]:
        try:
            status = self._process.wait(180)
        finally:
            self._process.kill()
        return status, self._log.read_text()


def said(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("drifting: ")]


def test_lost_process_ends_the_run_which_is_gone_on_with_and_stopped_politely(tmp_path):
    folder = tmp_path / "run"
    run = Launched(tmp_path / "log", "train", "digits", "--save-dir", folder)
    run.wait_for(folder / "checkpoints" / "step-00000005")
    run.send(signal.SIGKILL, rank=1)
    status, text = run.ends_with()
    assert status == 1
    (line,) = said(text)
    again = rf"torchrun --nproc-per-node 2 -m drifting train digits --save-dir {folder} --resume"
    found = re.fullmatch(rf"drifting: a process of this run was lost; its checkpoint (\S+) is whole\. Go on with: {again}", line)
    assert found, line
    newest = checkpoints(folder / "checkpoints")[-1]
    assert newest.name == found[1]
    saved = int(newest.name.removeprefix("step-"))
    assert saved >= 5
    assert re.search(r"exitcode  : 1 ", text)

    run = Launched(tmp_path / "log", "train", "digits", "--save-dir", folder, "--resume")
    run.wait_for(folder / "checkpoints" / f"step-{saved + 5:08d}")
    run.send(signal.SIGTERM)
    _, text = run.ends_with()
    (line,) = said(text)
    stopped = re.fullmatch(rf"drifting: Stopped at step (\d+) of 100000; everything is saved\. Go on with: {again}", line)
    assert stopped, line
    newest = checkpoints(folder / "checkpoints")[-1]
    assert newest.name == f"step-{int(stopped[1]):08d}"
    assert load_checkpoint(newest)[0]["average.n_averaged"] == int(stopped[1])


def test_bad_input_is_printed_once_and_ends_all_processes(tmp_path):
    run = Launched(tmp_path / "log", "train", "toy", "--batch-size", 31, "--save-dir", tmp_path / "run")
    status, text = run.ends_with()
    assert status == 1
    assert said(text) == [
        "drifting: world size is 2, which does not divide the 31 generated samples of a step: "
        "start as many processes as do, such as 1"
    ]
    assert "exitcode  : 2 " in text
    assert not (tmp_path / "run").exists()


def test_samples_of_two_processes_are_those_of_one(digits_run, tmp_path):
    files = [tmp_path / "two.npy", tmp_path / "one.npy"]
    status, text = Launched(tmp_path / "log", "sample", digits_run, "--num-samples", 9, "--out", files[0]).ends_with()
    assert status == 0
    assert text.count("two.npy") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WORLD_SIZE", raising=False)
        main(["sample", str(digits_run), "--num-samples", "9", "--out", str(files[1])])
    two, one = (np.load(file).astype(int) for file in files)
    assert two.shape == (9, 8, 8, 1)
    assert abs(two - one).max() <= 1
