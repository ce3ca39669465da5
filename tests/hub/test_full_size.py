"""An artifact of the largest published size: how long its conversion takes, and how much memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drifting.generators.dit import SIZES, DiT
from drifting.hub import write_artifact
from drifting.hub.release_format import metadata_of

# Runs the command and tells the highest memory of its process, in kilobytes.
CONVERT = """
import json, resource, sys, time
start = time.perf_counter()
from drifting.cli import main
main(["convert", *sys.argv[1:]])
facts = {"seconds": time.perf_counter() - start, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
print(json.dumps(facts))
"""


def _convert(source: Path, out: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(source), "--out", str(out)], capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout.splitlines()[-1])
    print(f"{source.name} -> {out.name}: {facts['seconds']:.1f} s, {facts['memory'] / 2**20:.2f} GiB")
    return facts


@pytest.mark.slow
def test_largest_generator_is_converted_in_a_minute_and_six_gigabytes(tmp_path):
    with torch.device("meta"):
        network = DiT(sample_shape=(4, 32, 32), size=SIZES["L/2"], num_classes=1000)
    weights = sum(value.numel() for value in network.parameters())
    assert weights == pytest.approx(463e6, rel=0.01)
    shapes, rng = {name: value.shape for name, value in network.named_parameters()}, torch.Generator().manual_seed(0)
    write_artifact(tmp_path / "theirs", metadata_of(network), network, lambda name: torch.randn(shapes[name], generator=rng))
    for source, out in (("theirs", "ours"), ("ours", "back")):
        facts = _convert(tmp_path / source, tmp_path / out)
        assert facts["seconds"] < 60
        assert facts["memory"] < 6e9 / 1024
    first, second = (tmp_path / folder / "ema_params.msgpack" for folder in ("theirs", "back"))
    assert first.stat().st_size > 4 * weights
    with first.open("rb") as one, second.open("rb") as other:
        while block := one.read(2**24):
            assert other.read(2**24) == block
        assert not other.read()
