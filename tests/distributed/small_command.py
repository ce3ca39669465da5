"""The command line over small presets, to be started by torchrun: digits train for very long, with a checkpoint every few steps."""

import dataclasses

from drifting import presets
from drifting.cli import main
from drifting.runs import pictures as drawing
from tests.support.small_runs import shrunk


def _long_digits():
    config = shrunk(_DIGITS.make())
    return dataclasses.replace(presets.adjust(config, steps=100_000), checkpoint_every=5, log_every=1000)


_DIGITS = presets.PRESETS["digits"]

if __name__ == "__main__":
    presets.PRESETS["digits"] = dataclasses.replace(_DIGITS, make=_long_digits)
    drawing.draw_pictures = lambda config, folder, **_: []
    main()
