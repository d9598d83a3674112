"""`python -m finetune serve --host 127.0.0.1 --port N`: the inference engine as a process of its own.

Prints one line with its address when it takes requests; the base is loaded by the first one. Ends with 0 on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from finetune import environment
from finetune.exit_codes import StepError

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def main(argv: list[str]) -> int | None:
    """Serve until told to stop.

    Args:
        argv: See `--help`.
    Returns:
        2 for settings that cannot be used; else it does not return: the process ends with 0.
    """
    given = _parser().parse_args(argv)
    token = given.token or environment.engine_token()
    if token is None and given.host not in LOOPBACK:
        print(
            "Set LLAMAFLOW_ENGINE_TOKEN: without a token the engine serves only on a loopback address.", file=sys.stderr
        )
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        listener = socket.create_server(
            (given.host, given.port), family=socket.AF_INET6 if ":" in given.host else socket.AF_INET
        )
    except OSError as problem:
        raise StepError(
            "internal_error", f"The engine cannot listen on {given.host}:{given.port}: {problem.strerror}."
        ) from None
    _serve(given, token, listener)
    sys.stdout.flush()
    os._exit(
        0
    )  # at once: a base being fetched holds a thread that cannot be interrupted, and nothing here needs saving


def _serve(given: argparse.Namespace, token: str | None, listener: socket.socket) -> None:
    import uvicorn

    from finetune.inference.engine import Engine, Options
    from finetune.inference.http import create_app

    options = Options(
        cache=environment.cache_dir(str(given.cache) if given.cache else None),
        queue=given.queue,
        together=given.together,
        batch_tokens=given.batch_tokens,
        window=given.window_ms / 1000,
        max_adapters=given.max_adapters,
        max_adapter_bytes=given.max_adapter_mb << 20,
        max_tokens=given.max_tokens,
        idle_seconds=given.idle_seconds,
        allow_local=given.allow_local,
    )
    app = create_app(Engine(options), token, ping_seconds=given.ping_seconds)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
    host, port = listener.getsockname()[:2]
    print(f"Engine ready on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    # uvicorn raises the signal that ended it once more when it is done; by then it has been obeyed
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server.run(sockets=[listener])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port; 0 for a free one, which is printed")
    parser.add_argument("--token", help="bearer token callers must show; better: LLAMAFLOW_ENGINE_TOKEN")
    parser.add_argument("--cache", type=Path, help="cache of bases and adapters (default: LLAMAFLOW_CACHE_DIR)")
    parser.add_argument(
        "--queue", type=int, default=64, help="requests taken in at once, further ones get 429 (default: %(default)s)"
    )
    parser.add_argument("--together", type=int, default=16, help="answers in the making at once (default: %(default)s)")
    parser.add_argument(
        "--batch-tokens", type=int, default=32768, help="tokens a batch holds, padding counted (default: %(default)s)"
    )
    parser.add_argument(
        "--window-ms",
        type=float,
        default=5.0,
        help="how long the first request waits for others to begin with (default: %(default)s)",
    )
    parser.add_argument("--max-adapters", type=int, default=16, help="adapters in memory (default: %(default)s)")
    parser.add_argument(
        "--max-adapter-mb", type=int, default=2048, help="MiB of adapters in memory (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=1024,
        help="tokens an answer gets when the request names none (default: %(default)s)",
    )
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=900.0,
        help="drop the base after this long without requests; 0: never (default: %(default)s)",
    )
    parser.add_argument(
        "--ping-seconds",
        type=float,
        default=10.0,
        help="silence after which a stream gets a comment (default: %(default)s)",
    )
    parser.add_argument("--allow-local", action="store_true", help="take adapters from file:// addresses")
    return parser
