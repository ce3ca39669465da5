"""The command that says whether a training works."""

from pathlib import Path

from tyro.conf import Positional


def doctor(run: Positional[Path], /) -> int:
    """Say whether a training works, from the log in its run folder, finished or not; the exit status is 1 if it has a fault.

    Args:
        run: the run folder.
    """
    from drifting.runs.doctor import examine

    diagnosis = examine(run)
    print(*diagnosis.lines(), sep="\n")
    return 1 if diagnosis.faults else 0
