"""The one exception for input that a person can mend."""


class InputError(ValueError):
    """Bad input: one sentence that names the argument, the value and the mend.

    The command line prints the sentence and exits with status 2; a library caller may catch it as a `ValueError`.
    """
