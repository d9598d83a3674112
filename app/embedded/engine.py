"""The embedded inference engine: `python -m finetune serve`, a process of its own that alone imports torch."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import urlsplit

from app.embedded.environment import for_part
from app.settings import Settings

DEFAULT_URL = "http://127.0.0.1:8001"


def command(url: str) -> list[str]:
    """How the engine that answers at `url` is started. Its token comes by the environment, not by the command line."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    return [sys.executable, "-m", "finetune", "serve", "--host", host, "--port", str(port)]


def run_foreground(settings: Settings) -> int:
    """Run the engine at LLAMAFLOW_ENGINE_URL until it ends.

    Returns:
        Its exit status.
    """
    url = settings.engine_url or DEFAULT_URL
    engine = subprocess.Popen(command(url), env=for_part(settings, {"LLAMAFLOW_CACHE_DIR": str(settings.cache)}))
    while True:
        try:
            return engine.wait()
        except KeyboardInterrupt:  # it had the same Ctrl-C
            continue
