"""`make lock-jars`: resolve the Java parts anew and write `app/nextflow/jars.lock`.

The only home of the coordinates asked for and of what S3Proxy is spared: cloud back ends that the embedded server never
loads, some of which cannot be resolved from the public repository.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from jgo.env import EnvironmentBuilder, EnvironmentSpec
from jgo.maven import MavenContext

LOCK = Path(__file__).resolve().parent.parent / "app" / "nextflow" / "jars.lock"
ROOTS = {"nextflow": "io.nextflow:nextflow:24.10.0", "s3proxy": "org.gaul:s3proxy:3.2.0"}
EXCLUDED = {
    "nextflow": [],
    "s3proxy": [
        "com.google.cloud:google-cloud-storage",
        "com.azure:azure-storage-blob",
        "com.azure:azure-identity",
        "software.amazon.awssdk:sts",
        "software.amazon.awssdk:s3",
        "org.apache.jclouds.api:rackspace-cloudfiles",
        "org.apache.jclouds.provider:rackspace-cloudfiles-us",
        "org.apache.jclouds.provider:rackspace-cloudfiles-uk",
        "org.apache.sshd:sshd-sftp",
    ],
}
HEADER = "# tool coordinate sha256 bytes: written by scripts/lock_jars.py, read by app/nextflow/jars.py\n"


def resolve(tool: str, folder: Path) -> list[str]:
    """The lock's lines of one tool, sorted by coordinate."""
    spec = EnvironmentSpec(name=tool, coordinates=[ROOTS[tool]], exclusions=EXCLUDED[tool])
    built = EnvironmentBuilder(context=MavenContext(repo_cache=folder / "m2"), cache_dir=folder / "jars").from_spec(
        spec
    )
    by_name = {path.name: path for path in built.all_jars}
    lines = []
    for jar in built.lockfile.dependencies:
        name = f"{jar.artifactId}-{jar.version}{'-' + jar.classifier if jar.classifier else ''}.jar"
        content = by_name.pop(name).read_bytes()
        coordinate = ":".join([jar.groupId, jar.artifactId, jar.version, *([jar.classifier] if jar.classifier else [])])
        lines.append(f"{tool} {coordinate} {hashlib.sha256(content).hexdigest()} {len(content)}")
    if by_name:
        raise SystemExit(f"{tool}: jars without a coordinate: {sorted(by_name)}")
    return sorted(lines)


def main() -> int:
    """Write the lock; says how many jars it holds."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [line for tool in ROOTS for line in resolve(tool, Path(folder))]
    LOCK.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{LOCK.name}: {len(lines)} jars")
    return 0


if __name__ == "__main__":
    sys.exit(main())
