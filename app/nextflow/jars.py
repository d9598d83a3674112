"""The Java parts by content: reads `jars.lock`, checks the jars that are there, fetches the others in parallel through jgo.

May touch only the folder it is given. Where jars come from is jgo's business (its own settings may name a mirror); that
they are the right ones is the lock's sha256.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

LOCK = Path(__file__).with_name("jars.lock")
PARALLEL = 16
TRIES = 4
TIMEOUT = 60

Report = Callable[[str], None]


class InstallError(RuntimeError):
    """The Java parts could not be installed; says which, why, and the way out."""


@dataclass(frozen=True)
class Jar:
    """One line of the lock.

    Attributes:
        tool: nextflow or s3proxy.
        coordinate: group:artifact:version[:classifier].
        sha256: Of the file, in hex.
        size: In bytes.
    """

    tool: str
    coordinate: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """File name below the jars folder."""
        return "-".join(self.coordinate.split(":")[1:]) + ".jar"


def read_lock(path: Path = LOCK) -> list[Jar]:
    """The jars of a lock file, in its order (which is the order of the class paths)."""
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [Jar(tool, coordinate, sha256, int(size)) for tool, coordinate, sha256, size in rows]


def is_whole(path: Path, jar: Jar) -> bool:
    """Whether the file is there with the lock's size and sha256."""
    try:
        if path.stat().st_size != jar.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


def missing(folder: Path, jars: Iterable[Jar]) -> list[Jar]:
    """Those that are not there, or not whole: a kill during an earlier install, a full disk."""
    wanted = {jar.name: jar for jar in jars}
    return [jar for name, jar in wanted.items() if not is_whole(folder / name, jar)]


def fetch(folder: Path, jars: list[Jar], report: Report, tries: int = TRIES) -> None:
    """Download jars beside and rename each when its sha256 is right.

    Args:
        folder: Where they go; made if missing.
        jars: Those to fetch.
        report: Called with lines for a user.
        tries: Of each, with longer and longer pauses between.
    Raises:
        InstallError: One could not be had, or is not what the lock says.
    """
    logging.getLogger("jgo").setLevel(logging.ERROR)
    began, total = time.monotonic(), sum(jar.size for jar in jars)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as beside, ThreadPoolExecutor(PARALLEL) as pool:
        waiting = [pool.submit(_fetch_one, jar, Path(beside), folder, tries) for jar in jars]
        try:
            for number, done in enumerate(as_completed(waiting), 1):
                done.result()
                if number % 40 == 0:
                    report(f"{number} of {len(jars)} jars")
        except BaseException:  # also Ctrl-C: do not fetch the rest first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    report(f"{len(jars)} jars, {total / 1e6:.0f} MB, downloaded in {time.monotonic() - began:.0f} s")


def _fetch_one(jar: Jar, beside: Path, folder: Path, tries: int) -> None:
    why = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(2**attempt)
        try:
            found = _resolve(jar, beside / str(attempt))
        except Exception as error:  # noqa: BLE001 - jgo and requests raise many kinds; the last one is told
            why = str(error)
            continue
        if is_whole(found, jar):
            found.replace(folder / jar.name)
            return
        why = f"what came is not the file of the lock (sha256 {jar.sha256[:12]}…)"
    raise InstallError(
        f"{jar.coordinate} could not be downloaded after {tries} tries: {why}. Check the network, or name a Maven mirror "
        "as `central` under [repositories] in ~/.config/jgo.conf. Run it again: what is there is kept."
    )


def _resolve(jar: Jar, cache: Path) -> Path:
    """Let jgo download one jar, and no POM: the lock already says what is needed."""
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext
    from jgo.maven._core import DEFAULT_REMOTE_REPOS

    group, artifact, version, *classifier = jar.coordinate.split(":")
    context = MavenContext(
        repo_cache=cache, remote_repos=DEFAULT_REMOTE_REPOS | GlobalSettings.load().repositories, timeout=TIMEOUT
    )
    found: Path = context.project(group, artifact).at_version(version).artifact(*classifier).resolve()
    return found


def sweep(folder: Path) -> None:
    """Remove what a killed download left. Only for the holder of the install lock."""
    for left in folder.glob(".download-*"):
        shutil.rmtree(left, ignore_errors=True)
