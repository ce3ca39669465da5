"""The command that serves samples over HTTP."""

from tyro.conf import Positional


def serve(
    run: Positional[str],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_samples: int | None = None,
    max_waiting: int = 64,
    timeout: float = 30.0,
    vae: str | None = None,
    device: str = "cpu",
) -> None:
    """Serve samples of a trained run over HTTP until Ctrl-C: /sample as PNG, NPZ or JSON, /health, /metrics and /openapi.json.

    Args:
        run: run folder, artifact of the authors (converted or not), or hub:NAME for a published artifact.
        host: address to listen on; the default is reached from this machine alone. There are no passwords.
        port: port to listen on; 0 for any free one.
        max_samples: largest number of samples of a request; by default 1024, or as many as have 64 MiB.
        max_waiting: largest number of requests in hand; further ones are refused with status 429.
        timeout: seconds after which a request that waits for its samples is refused with status 503.
        vae: Hub id or folder of the auto-encoder that decodes the latents of an artifact, as in `drifting sample`.
        device: device of the generator: cpu, cuda, cuda:1 or mps.
    """
    from drifting.serving import Limits
    from drifting.serving import serve as serve_run

    limits = Limits(max_samples=max_samples, max_waiting=max_waiting, timeout=timeout)
    serve_run(run, host=host, port=port, limits=limits, vae=vae, device=device)
