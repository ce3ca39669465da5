"""Import matplotlib whatever MPLBACKEND says: pictures are drawn without a backend, so one that is not there is in nobody's way.

A notebook sets the variable for all that it starts, also where its backend is not installed.
"""

import os
import sys
from contextlib import suppress

_VARIABLE = "MPLBACKEND"

if "matplotlib" not in sys.modules:
    # Read by matplotlib as it is imported, which ends in a ValueError for a backend that it does not find.
    asked = os.environ.pop(_VARIABLE, None)
    try:
        import matplotlib
    finally:
        if asked is not None:
            os.environ[_VARIABLE] = asked
    if asked:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = asked
