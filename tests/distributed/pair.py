"""Two processes joined by gloo, started once, that call a function of a module together whenever they are asked to."""

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

PATIENCE = 180


class Pair:
    """Call it as pair(function, *arguments): the results of both processes, in the order of their ranks."""

    def __init__(self, size: int = 2) -> None:
        self.size, self._workers, self._pipes = size, [], []

    def __call__(self, function: Callable, *arguments: Any) -> list[Any]:
        if not self._workers:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, arguments)))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(PATIENCE):
                self.stop()
                raise AssertionError(f"process {rank} did not answer")
            results.append(pickle.loads(pipe.recv_bytes()))
        for worked, result in results:
            if not worked:
                self.stop()
                raise AssertionError(result)
        return [result for _, result in results]

    def _start(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        port = free_port()
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            self._workers.append(context.Process(target=_serve, args=(rank, self.size, port, theirs), daemon=True))
            self._pipes.append(ours)
            self._workers[-1].start()

    def stop(self) -> None:
        """End both processes."""
        for worker in self._workers:
            worker.kill()
            worker.join()
        self._workers, self._pipes = [], []


def free_port() -> int:
    """Return a port of this machine that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _serve(rank: int, size: int, port: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    while True:
        function, arguments = pickle.loads(pipe.recv_bytes())
        try:
            answer = (True, function(*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
