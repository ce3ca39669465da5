"""The command that writes a run into a folder to share, or uploads it to the Hugging Face Hub."""

from pathlib import Path

from tyro.conf import Positional

from drifting.errors import InputError

_HUB = "hub:"


def share(run: Positional[Path], /, *, to: str, private: bool = False, half: bool = False, overwrite: bool = False) -> None:
    """Share a trained run: its weights, configuration, figures, a picture of samples and a model card. No real data are in it.

    Args:
        run: the run folder.
        to: a folder to write, or hub:OWNER/NAME for a repository of the Hugging Face Hub, for which you log in with hf auth login.
        private: make a new repository that only you can see.
        half: store the weights in float16, in half the space.
        overwrite: replace an earlier shared run in the folder.
    """
    from drifting import runs

    trained = runs.load_run(run)
    if to.startswith(_HUB):
        print(trained.push_to_hub(to.removeprefix(_HUB), private=private or None, half=half))
    elif private:
        raise InputError(f"private is given, but to is '{to}', a folder: leave it out, or name hub:OWNER/NAME")
    else:
        print(*trained.save_pretrained(to, half=half, overwrite=overwrite), sep="\n")
