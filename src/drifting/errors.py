"""The one exception for input that a person can fix, and how other people's words get into its sentence."""

import re

# Characters of a message: what a terminal shows without drowning the rest.
MOST_CHARACTERS = 300
_CUT = " ... "
# What stands in quotes, such as a path, and how much of its end is shown where there is no room for it.
_SHOWN = 60
_QUOTED = re.compile(rf"'([^'\n]{{{_SHOWN + 4},}})'")


class InputError(ValueError):
    """Bad input: one sentence that names the argument, the value and the fix.

    The command line prints the sentence and exits with status 2; a library caller may catch it as a `ValueError`. The sentence is
    one line of at most 300 characters: where it would be longer, paths keep their ends alone, and then it loses its middle.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MOST_CHARACTERS:
            message = _QUOTED.sub(lambda found: f"'{_CUT.strip()}{found[1][-_SHOWN:]}'", message)
        super().__init__(one_line(message, MOST_CHARACTERS))


def one_line(text: object, most: int) -> str:
    """Return text on one line of at most `most` characters, cut in its middle, with ? for what a terminal would not print."""
    line = " ".join(str(text).splitlines())
    line = "".join(character if character.isprintable() else "?" for character in line)
    if len(line) <= most:
        return line
    start = (most - len(_CUT)) // 2
    return line[:start] + _CUT + line[len(line) - (most - len(_CUT) - start) :]


def reason(error: BaseException) -> str:
    """Return what another library says of its error, short enough for a sentence of ours; its kind if it says nothing."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(" ".join(words.split()), 120) or type(error).__name__


class StorageError(OSError):
    """A disk that is full, gone or refuses: one sentence that says what is safe and how to go on; the command line exits with 1."""
