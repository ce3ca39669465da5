"""The exception for input that a person can fix, and functions that put messages of other libraries into its sentence."""

import re

# Largest number of characters of a message.
MOST_CHARACTERS = 300
_CUT = " ... "
# Number of characters shown of the end of a long quotation, such as a path; and long quotations.
_SHOWN = 60
_QUOTED = re.compile(rf"'([^'\n]{{{_SHOWN + 4},}})'")


class InputError(ValueError):
    """Bad input: one sentence that names the argument, the value and the fix.

    The command line prints the sentence and exits with status 2; a library caller may catch it as a `ValueError`. The sentence is
    one line of at most 300 characters. A longer one is shortened: first paths to their ends, then the sentence in its middle.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MOST_CHARACTERS:
            message = _QUOTED.sub(lambda found: f"'{_CUT.strip()}{found[1][-_SHOWN:]}'", message)
        super().__init__(one_line(message, MOST_CHARACTERS))


def one_line(text: object, most: int) -> str:
    """Return text on one line of at most `most` characters, shortened in its middle, with ? for unprintable characters."""
    line = " ".join(str(text).splitlines())
    line = "".join(character if character.isprintable() else "?" for character in line)
    if len(line) <= most:
        return line
    start = (most - len(_CUT)) // 2
    return line[:start] + _CUT + line[len(line) - (most - len(_CUT) - start) :]


def reason(error: BaseException) -> str:
    """Return the message of another library's error, shortened to fit into a sentence, or its class if it has none."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(" ".join(words.split()), 120) or type(error).__name__


class StorageError(OSError):
    """A full, missing or unwritable disk: one sentence that says what is saved and how to continue. The command exits with 1."""
