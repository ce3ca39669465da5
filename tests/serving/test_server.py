"""The command, on a port of this machine."""

import json
import os
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request

import pytest


def test_command_serves_until_it_is_interrupted(command, toy_run, capsys, monkeypatch):
    found, answers = threading.Event(), []
    address = []

    def announce(*words, **options):
        address.append(words[0].split(" is served at ")[1].partition(";")[0])
        found.set()

    monkeypatch.setattr("builtins.print", announce)

    def ask():
        try:
            assert found.wait(20)
            with urllib.request.urlopen(f"{address[0]}/sample?num_samples=3&seed=1", timeout=20) as answer:
                answers.append(json.load(answer))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals arrive in the main thread alone")
    client = threading.Thread(target=ask)
    client.start()
    result = command("serve", toy_run, "--port", 0)
    client.join(20)
    assert (result.status, result.err) == (0, "")
    assert address[0].startswith("http://127.0.0.1:")
    assert len(answers[0]["samples"]) == 3
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address[0], timeout=5)


def test_port_in_use_is_one_sentence(command):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = command("serve", "runs/none", "--port", port)
    assert (result.status, result.out) == (2, "")
    assert result.err == f"drifting: port is {port}, which is in use on 127.0.0.1: pass another one, or --port 0 for a free one\n"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--port", 70000), "port is 70000: pass a whole number from 0 (any free port) to 65535"),
        (("--host", "nowhere.invalid", "--port", 0), "host is 'nowhere.invalid', which "),
        (("--host", "192.0.2.1", "--port", 0), "host is '192.0.2.1', which cannot be used ("),
        (("--port", 0, "--device", "tpu"), "device is 'tpu'"),
        (("--port", 0, "--max-waiting", 0), "max_waiting is 0: pass at least 1"),
        (("--port", 0), "run is 'runs/none', which is not a folder"),
    ],
)
def test_wrong_arguments_are_one_sentence(here, command, flags, sentence):
    result = command("serve", "runs/none", *flags)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"drifting: {sentence}")
    assert result.err.count("\n") == 1


def test_missing_library_is_named(command, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("drifting.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = command("serve", "runs/none", "--port", 0)
    assert (result.status, result.out) == (2, "")
    assert result.err == "drifting: the library fastapi is not installed: pip install 'drifting-models[serve]'\n"
