"""How a command is stopped: by Ctrl-C, or by a termination or a hang-up, which act alike; a second time at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPED = 130


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn the first signal to stop into KeyboardInterrupt, so that what is half-written is cleared away; a second ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        if received:
            os._exit(STOPPED)
        received.append(number)
        raise KeyboardInterrupt

    # What is ignored stays so, as nohup asks for; what somebody else handles is theirs.
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):
        usual[signal.SIGHUP] = signal.SIG_DFL
    replaced = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    for number in replaced:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
