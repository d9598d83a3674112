"""`make setup`: from a bare Python to a working environment, into this folder. Standard library only; Python ≥ 3.11.

uv from PyPI (pinned by hash) → .venv → the locked packages → this project → the Java parts. Done once: a stamp over lock
files, Python and place makes the next call a matter of milliseconds, and an install that was cut off is started afresh.
Index addresses, proxies and certificates are the user's: pip's are passed on to uv, none is written down.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-model.lock")
WORTH_A_LINE_MB = 50
NEEDED_GB = 9
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "cert": "SSL_CERT_FILE",
    "find-links": "UV_FIND_LINKS",
}


INTO_TARGET = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"}
"""Settings people have for their own installs, which would forbid this one."""


class SetupError(Exception):
    """Setup cannot go on; says why and what to do."""


class Setup:
    """One project folder and its environment.

    Args:
        root: The project.
        say: Gets lines for the user.
    """

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self.root = root
        self.say = say
        self.tools = root / ".tools"
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.uv = self.tools / "uv" / "bin" / "uv"
        self.log = self.tools / "setup.log"
        self.stamp = self.venv / "llamaflow.stamp"
        self.unfinished = self.tools / "unfinished"

    def wanted_stamp(self) -> str:
        """What the environment depends on: lock files, what is declared, the machine, and where the folder lies."""
        digest = hashlib.sha256()
        for name in (*LOCKS, "requirements-uv.lock", "pyproject.toml"):
            digest.update((self.root / name).read_bytes())
        digest.update(f"{platform.machine()} {platform.system()} {self.root}".encode())
        return digest.hexdigest()

    def is_done(self) -> bool:
        """Whether an earlier setup finished and nothing changed since."""
        try:
            return (
                self.python.exists() and self.stamp.read_text() == self.wanted_stamp() and not self.unfinished.exists()
            )
        except OSError:
            return False

    def run(self) -> None:
        """Do what is left to do.

        Raises:
            SetupError: A step failed.
        """
        if self.is_done():
            return
        began = time.monotonic()
        self.tools.mkdir(exist_ok=True)
        with self._only_one():
            if self.is_done():
                return
            self._check_machine()
            self.log.write_text("")
            self._get_uv()
            env = self._environment()
            self._make_venv(env)
            self._install(env)
            self.stamp.write_text(self.wanted_stamp())
            self.unfinished.unlink()
        self.say(f"Set up in {time.monotonic() - began:.0f} s.")

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        with (self.tools / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say("Another setup of this folder is running; waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_machine(self) -> None:
        if platform.system() not in ("Linux", "Darwin"):
            raise SetupError(
                f"{platform.system()} is not supported: LlamaFlow runs on Linux and macOS (Windows: in WSL)."
            )
        if platform.system() == "Linux" and platform.libc_ver()[0] != "glibc":
            raise SetupError(
                "This Linux has no glibc (Alpine?): PyTorch and the embedded Postgres have no builds for it."
            )
        free = shutil.disk_usage(self.root).free / 1e9
        if free < NEEDED_GB and not self.python.exists():
            self.say(
                f"Only {free:.1f} GB are free here; about {NEEDED_GB} GB are needed (PyTorch is most of it). Trying all the same."
            )

    def _get_uv(self) -> None:
        lock = self.root / "requirements-uv.lock"
        version = lock.read_text().split("==")[1].split()[0]
        mark = self.tools / "uv.version"
        if self.uv.exists() and mark.exists() and mark.read_text() == version:
            return
        with self._step(f"uv {version}", lambda: self.uv):
            shutil.rmtree(self.tools / "uv", ignore_errors=True)
            words = [
                "install",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--require-hashes",
                "--disable-pip-version-check",
            ]
            self._call(
                [*self._pip(), *words, "--target", str(self.tools / "uv"), "-r", str(lock)], os.environ | INTO_TARGET
            )
            mark.write_text(version)

    def _pip(self) -> list[str]:
        """A pip to fetch uv with: that of this Python, else that of a venv made for it."""
        if self._works([sys.executable, "-m", "pip", "--version"]):
            return [sys.executable, "-m", "pip"]
        aside = self.tools / "pip"
        if not self._works([str(aside / "bin" / "python"), "-m", "pip", "--version"]):
            shutil.rmtree(aside, ignore_errors=True)
            if not self._works([sys.executable, "-m", "venv", str(aside)]):
                raise SetupError(
                    f"{sys.executable} has neither pip nor venv. Install one of them, such as `apt-get install python3-venv`, "
                    "or name another Python: make setup PYTHON=/path/to/python3.12"
                )
        return [str(aside / "bin" / "python"), "-m", "pip"]

    def _works(self, argv: list[str]) -> bool:
        try:
            with self.log.open("a") as log:
                return subprocess.run(argv, stdout=log, stderr=log, check=False).returncode == 0
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        """uv's environment: the user's, with what pip was told about the network where uv was told nothing."""
        env = dict(os.environ) | {
            "UV_PYTHON_DOWNLOADS": "never",
            "NO_COLOR": "1",
            "VIRTUAL_ENV": str(self.venv),
        }
        listed = subprocess.run([*self._pip(), "config", "list"], capture_output=True, text=True, check=False).stdout
        env = uv_environment(env, listed)
        if not {"UV_CACHE_DIR", "XDG_CACHE_HOME"} & env.keys() and not os.access(Path("~").expanduser(), os.W_OK):
            env["UV_CACHE_DIR"] = str(self.tools / "cache")
        return env

    def _make_venv(self, env: Mapping[str, str]) -> None:
        """A fresh .venv, unless the one that is there is whole, whichever Python made it."""
        whole = self.python.exists() and not self.unfinished.exists() and self._is_our_python()
        self.unfinished.touch()
        if not whole:
            if self.venv.exists():
                self.say("The earlier .venv is unfinished, or its Python is gone: made afresh.")
                shutil.rmtree(self.venv)
            base = getattr(sys, "_base_executable", sys.executable)
            self._call([str(self.uv), "venv", "--quiet", "--no-project", "--python", base, str(self.venv)], env)

    def _is_our_python(self) -> bool:
        asked = "import sys; print(sys.version_info >= (3, 11), sys.prefix)"
        try:
            found = subprocess.run([str(self.python), "-c", asked], capture_output=True, text=True, check=False).stdout
        except OSError:
            return False
        return found.strip() == f"True {self.venv}"

    def _install(self, env: Mapping[str, str]) -> None:
        locks = [str(self.root / name) for name in LOCKS]
        pip, target = [str(self.uv), "pip"], ["--python", str(self.python)]
        with self._step("Python packages", lambda: self.venv):
            self._call([*pip, "sync", "--require-hashes", *target, *locks], env, watch=True)
        with self._step("LlamaFlow itself", None):
            self._call(
                [
                    *pip,
                    "install",
                    "--quiet",
                    "--no-deps",
                    "--no-build-isolation",
                    *target,
                    "--editable",
                    str(self.root),
                ],
                env,
            )
        with self._step("Java parts: Nextflow, S3 server", None):
            self._call([str(self.python), "-m", "app.nextflow.install"], os.environ)

    @contextmanager
    def _step(self, title: str, made: Callable[[], Path] | None) -> Iterator[None]:
        began = time.monotonic()
        self.say(f"{title} …")
        yield
        size = f", {size_of(made()) / 1e6:,.0f} MB" if made else ""
        self.say(f"{title}: {time.monotonic() - began:.1f} s{size}")

    def _call(self, argv: list[str], env: Mapping[str, str], *, watch: bool = False) -> None:
        """Run a program, its output into the log; with `watch`, tell of what is large while it is fetched."""
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(argv)}\n")
            log.flush()
            out = subprocess.PIPE if watch else log
            process = subprocess.Popen(
                argv, cwd=self.root, env=dict(env), stdout=out, stderr=subprocess.STDOUT, text=True
            )
            try:
                with heartbeat(self.say) if watch else nothing():
                    for line in process.stdout or ():
                        log.write(line)
                        if told := large(line):
                            self.say(f"  {told}")
                    status = process.wait()
            finally:
                process.kill()
                process.wait()
        if status:
            raise SetupError(self._why(argv))

    def _why(self, argv: list[str]) -> str:
        text = self.log.read_text(errors="replace")
        said = "\n".join(text[text.rindex("$ ") :].splitlines()[1:][-15:])
        return (
            f"`{Path(argv[0]).name} {' '.join(argv[1:4])} …` failed.{hint(said)}\n{said}\nThe whole log is {self.log}."
        )


def uv_environment(env: Mapping[str, str], pip_config: str) -> dict[str, str]:
    """`env` with pip's network settings under uv's names, where uv's are not set.

    Args:
        env: The user's environment.
        pip_config: What `pip config list` says: lines such as global.index-url='https://…'.
    """
    made = dict(env)
    for line in pip_config.splitlines():
        name, equals, value = line.partition("=")
        wanted = PIP_TO_UV.get(name.rpartition(".")[2].replace("_", "-"))
        if equals and wanted and wanted not in made and not (wanted == "UV_DEFAULT_INDEX" and "UV_INDEX_URL" in made):
            between = "," if wanted == "UV_FIND_LINKS" else " "
            made[wanted] = between.join(value.strip().strip("'\"").replace("\\n", " ").split())
    return made


def large(line: str) -> str | None:
    """uv's line about a download of 50 MB and more, such as `Downloading torch (846.9MiB)`; None for any other."""
    words = line.split()
    if len(words) < 3 or words[0] != "Downloading" or not words[-1].endswith("iB)"):
        return None
    number, unit = words[-1].strip("()")[:-3], words[-1][-4:-1]
    return line.strip() if unit == "GiB" or (unit == "MiB" and float(number) >= WORTH_A_LINE_MB) else None


def hint(said: str) -> str:
    """What probably helps, from the words of a failure; empty if nothing is known."""
    text = said.lower()
    if "no space left" in text:
        return f" The disk is full: about {NEEDED_GB} GB are needed here and in uv's cache."
    if "hash mismatch" in text or "do not match the hashes" in text:
        return " A package is not the one of the lock file: the index or a proxy changed it."
    if any(words in text for words in ("certificate", "ssl")):
        return " A certificate was refused: name your proxy's in SSL_CERT_FILE."
    if any(words in text for words in ("dns", "connect", "resolve host", "timed out", "network")):
        return " The package index was not reached: check the network, a proxy (HTTPS_PROXY) or a mirror (UV_DEFAULT_INDEX). What was fetched is kept."
    return ""


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


@contextmanager
def heartbeat(say: Callable[[str], None], every: float = 30.0) -> Iterator[None]:
    """Say now and then that the step still runs."""
    done, began = threading.Event(), time.monotonic()

    def beat() -> None:
        while not done.wait(every):
            say(f"  … {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def nothing() -> Iterator[None]:
    """No heartbeat."""
    yield


def main() -> int:
    """Set this folder up; 1 with a sentence on stderr if that fails."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file alone may meet an older one
        print(
            f"error: Python 3.11 or newer is needed; {sys.executable} is {platform.python_version()}.", file=sys.stderr
        )
        return 1
    try:
        Setup(ROOT, lambda line: print(line, flush=True)).run()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. `make setup` goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
