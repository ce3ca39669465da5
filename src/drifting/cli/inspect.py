"""The command that says what is in a folder of images, and what a training would do with it."""

from tyro.conf import Positional


def inspect(
    data: Positional[str], /, *, image_size: int | None = None, unconditional: bool = False, time_steps: bool = True
) -> int:
    """Say what a folder of images holds and what `drifting train images` would do with it; the exit status is 1 if it would stop.

    Args:
        data: a folder, a file or a Hub id, as for `drifting train images`.
        image_size: side in pixels; by default 64 or 32, whichever most images have, or their own size if they are small squares.
        unconditional: leave classes out.
        time_steps: time a few steps of the training, to say how many minutes it would take.
    """
    from drifting.runs.inspect import inspect_images

    found = inspect_images(data, image_size=image_size, unconditional=unconditional, time_steps=time_steps)
    print(*found.report(), sep="\n")
    return 1 if found.problems else 0
