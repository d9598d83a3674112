"""What the service adds: POST → callback wall time of a job over the same steps run one after another by hand.

`.venv/bin/python benchmarks/overhead.py [--epochs N] [--repeats N]` starts the embedded service on a state of its own, runs
the demonstration's job through the API, then the six steps of the very same step files as plain commands (fresh train/
folder, fresh prefix, same caches), and prints both, the ratio, and where the rest goes. Order alternates between repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

from app.demo.receiver import Receiver
from app.demo.run import MODEL, _upload
from app.embedded.background import Running, start
from app.settings import Settings

TAKES: dict[str, dict[str, str]] = {
    "download": {},
    "fetch": {},
    "prepare": {"data": "data", "base": "base", "base_info": "base.json"},
    "train": {"prepared": "prepared", "base": "base", "base_info": "base.json"},
    "evaluate": {"prepared": "prepared", "base": "base", "base_info": "base.json", "adapter": "adapter"},
    "upload": {
        "source": "data/source.json",
        "base_info": "base.json",
        "resolved": "prepared/resolved.json",
        "adapter": "adapter",
        "result": "result.json",
        "metrics": "metrics.csv",
        "evaluation": "evaluation.json",
    },
}


def through_the_service(
    service: Running, receiver: Receiver, epochs: int, seed: int
) -> tuple[str, float, dict[str, float]]:
    """One job through the API: its id, seconds from POST to callback, and seconds by part."""
    client = OpenAI(base_url=service.url + "/v1", api_key=service.api_key)
    training, validation = _upload(service)
    began = time.time()
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=training,
        validation_file=validation,
        seed=seed,
        extra_body={
            "hyperparameters": {"n_epochs": epochs, "batch_size": 8, "learning_rate": 1e-3},
            "callback_url": receiver.url,
        },
    )
    event = receiver.events.get(timeout=1800)
    seconds = time.time() - began
    if event.type != "fine_tuning.job.succeeded":
        raise SystemExit(f"{job.id} ended {event.type}: see {service.state_dir}/runs/{job.id}")
    return job.id, seconds, where_it_went(service, client, job.id, began, began + seconds)


def where_it_went(service: Running, client: OpenAI, job_id: str, began: float, ended: float) -> dict[str, float]:
    """Seconds by part, from Nextflow's trace and the job's own times."""
    rows: list[dict[str, str]] = []
    for path in (Path(service.state_dir) / "runs" / job_id).rglob("*trace*.t*"):
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        rows += [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
    stages = [(row["process"], int(row["start"]) / 1000, int(row["complete"]) / 1000) for row in rows]
    first, last = min(start for _, start, _ in stages), max(end for _, _, end in stages)
    job: Any = client.get(f"/fine_tuning/jobs/{job_id}", cast_to=object)
    busy = sum(end - start for _, start, end in stages)
    return {
        "POST → first task (check of the dataset, claim, Nextflow's start)": first - began,
        "tasks, summed": busy,
        "between tasks (less what ran side by side)": last - first - busy,
        "last task → settled (Nextflow's end, manifest read back)": job["finished_at"] - last,
        "settled → callback received": ended - job["finished_at"],
    }


def by_hand(service: Running, job_id: str, number: int) -> tuple[float, dict[str, float]]:
    """The same steps one after another: seconds in all, and by step."""
    steps = Path(service.state_dir) / "runs" / job_id / "steps"
    env = os.environ | {"AWS_ACCESS_KEY_ID": service.s3_access_key, "AWS_SECRET_ACCESS_KEY": service.s3_secret_key}
    with tempfile.TemporaryDirectory(dir=service.state_dir) as name:
        folder = Path(name)
        seconds: dict[str, float] = {}
        for step, takes in TAKES.items():
            body = json.loads((steps / f"{step}.json").read_text(encoding="utf-8"))
            if "state_dir" in body:
                body["state_dir"] = str(folder / "train")
            if "s3" in body:  # the job's own credentials file went when the job ended
                body["s3"]["credentials_file"] = None
            if step == "upload":
                body["job"] = f"byhand-{number}"
            (folder / f"{step}.json").write_text(json.dumps(body), encoding="utf-8")
            argv = [sys.executable, "-m", "finetune", step, "--job", f"{step}.json"]
            argv += [part for key, path in takes.items() for part in ("--in", f"{key}={path}")]
            began = time.monotonic()
            subprocess.run(argv, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=env)
            seconds[step] = time.monotonic() - began
    return sum(seconds.values()), seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    shared = Settings()
    receiver = Receiver()
    with tempfile.TemporaryDirectory() as state:
        settings = Settings(state_dir=Path(state), tools_dir=shared.tools, cache_dir=shared.cache)
        service = start(settings, {"LLAMAFLOW_PORT": "0", "LLAMAFLOW_WEBHOOK_ALLOW": receiver.address})
        receiver.secret = service.webhook_secret
        try:
            ratios = [measure(service, receiver, given.epochs, number) for number in range(given.repeats)]
        finally:
            service.stop()
            receiver.close()
    print(
        f"\nratio: median {statistics.median(ratios):.3f} of {len(ratios)} (goal 1.15 or less on a job of three minutes)"
    )


def measure(service: Running, receiver: Receiver, epochs: int, number: int) -> float:
    """One pair; prints it and returns service / by hand."""
    job_id, served, parts = through_the_service(service, receiver, epochs, seed=number)
    plain, steps = by_hand(service, job_id, number)
    print(
        f"\npair {number + 1} on {os.cpu_count()} cores: POST → callback {served:.1f} s, the same steps by hand {plain:.1f} s, ratio {served / plain:.3f}"
    )
    for name, seconds in parts.items():
        print(f"  {seconds:7.2f} s  {name}")
    print("  by hand: " + ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps.items()))
    return served / plain


if __name__ == "__main__":
    main()
