"""How clients outside this environment are started."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent


def outside() -> dict[str, str]:
    """An environment without settings of any client, and without a proxy: nothing leaves the machine."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
