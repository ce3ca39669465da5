"""The service on a port, from its start until it is stopped."""

import errno
import socket
import sys
from contextlib import suppress

from drifting._checks import check_device
from drifting.errors import InputError, reason
from drifting.runs import share
from drifting.serving.limits import Limits

_LOCAL = ("127.0.0.1", "::1", "localhost")
_PORTS = 2**16
# Connections at the same time, and seconds for the requests in hand once the service is stopped.
_CONNECTIONS, _PATIENCE = 512, 10


def serve(
    place: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    vae: str | None = None,
    device: str = "cpu",
) -> None:
    """Serve samples over HTTP until the process is interrupted; requests in hand are answered before it returns.

    Args:
        place: run folder, or artifact of the authors, as of `share.load`.
        host: address to listen on. The default is reached from this machine alone.
        port: port to listen on; 0 for a free one.
        limits: limits of the service.
        vae: auto-encoder that decodes the latents of an artifact.
        device: device of the generator.

    Raises:
        InputError: if the port cannot be used, or there is no generator.
    """
    import uvicorn

    check_device(device)
    with listen(host, port) as listener:
        from drifting.serving.app import build_app

        sampler = share.load(place, vae=vae)
        sampler.generator.to(device)
        app = build_app(sampler, limits, name=place)
        options = {"lifespan": "on", "ws": "none", "http": "h11", "loop": "asyncio", "log_level": "warning", "server_header": False}
        bounds = {"limit_concurrency": _CONNECTIONS, "timeout_graceful_shutdown": _PATIENCE}
        server = uvicorn.Server(uvicorn.Config(app, **options, **bounds))  # pyright: ignore[reportArgumentType]
        if host not in _LOCAL:
            print(f"drifting: everyone who reaches port {listener.getsockname()[1]} of {host} can use the service", file=sys.stderr)
        listener.listen(_CONNECTIONS)
        print(f"{place} is served at {_address(listener)}; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):  # which the server has waited for, and passes on
            server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a port, or raise InputError."""
    if not 0 <= port < _PORTS:
        raise InputError(f"port is {port}: pass a whole number from 0 (any free port) to {_PORTS - 1}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"host is '{host}', which is no address ({reason(error)}): pass 127.0.0.1, or 0.0.0.0 for all") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # where it would let two services share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port is {port}, which is in use on {host}: pass another one, or --port 0 for a free one") from None
        if error.errno == errno.EACCES:
            raise InputError(f"port is {port}, which only an administrator may use: pass one from 1024 up") from None
        raise InputError(f"host is '{host}', which cannot be used ({reason(error)}): pass 127.0.0.1, or 0.0.0.0 for all") from None
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
