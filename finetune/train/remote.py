"""A train/ folder that no disk keeps: a local copy in the task's folder, and its state with the service and on S3.

One thread keeps the lease, sends the lines of progress.jsonl and hears what is asked; another one brings checkpoints to S3.
While neither service nor S3 answers, the training goes on. Who loses the lease ends with `ownership_lost`.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from finetune import environment
from finetune.config import MAKES
from finetune.exit_codes import StepError
from finetune.mirror import LINES_BYTES, Access, Entry, Mirror, Piece, step_of
from finetune.model.cache import file_sha256
from finetune.service import Away, Missing, Service
from finetune.steps import TrainStep
from finetune.train.folder import CHECKPOINT, TrainFolder

BEAT_SECONDS = 1.0
PAUSE_SECONDS = 10.0
"""Between two tries, at most."""

T = TypeVar("T")


def folder_of(step: TrainStep, inputs: dict[str, Path], out: Path, key: str) -> TrainFolder:
    """The train/ folder of a step: where the step file says, else in `out`; with `access` given only a copy of it in `out`.

    Args:
        step: train.json.
        inputs: `access` is the run's access.json, where the task shares no disk with the service.
        out: The task's folder.
        key: The train key.
    """
    if "access" in inputs:
        return RemoteFolder(out / "train", Access.read(inputs["access"]), key)
    return TrainFolder(Path(step.state_dir) if step.state_dir else out / "train")


class RemoteFolder(TrainFolder):
    """A train/ folder whose state outlives the disk it lies on.

    Args:
        path: For the copy; what is there is thrown away.
        access: How the service is reached.
        key: The train key.
    """

    def __init__(self, path: Path, access: Access, key: str) -> None:
        shutil.rmtree(path, ignore_errors=True)
        super().__init__(path)
        self._key = key
        self._service = Service(access, f"train-{secrets.token_hex(12)}")
        self._ending, self._stopped, self._changed = threading.Event(), threading.Event(), threading.Event()
        self._lost: StepError | None = None
        self._intent: str | None = None
        self._sent: int | None = None  # bytes of progress.jsonl that the service has; None until it was brought
        self._sending = threading.Lock()
        self._hashes: dict[tuple[Path, int, int], str] = {}
        self._there: set[str] = set()  # objects on S3, by sha256
        self._older: dict[str, list[Entry]] = {}  # checkpoints that are on S3 and not here

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Be the only one who trains: wait for the lease, bring what is there, keep both up to date until the block ends."""
        self._wait_for_lease()
        beat = threading.Thread(target=self._keep_lease, name="lease", daemon=True)
        carry = threading.Thread(target=self._keep_mirror, name="mirror", daemon=True)
        beat.start()
        carry.start()
        try:
            self._patiently(self._bring)
            try:
                yield
            except Exception:
                self._hand_in(carry)
                raise
            self._hand_in(carry)
            if self._lost is not None:
                raise self._lost
        finally:
            self._ending.set()
            self._stopped.set()
            beat.join(2 * BEAT_SECONDS)
            with suppress(Away, StepError):
                self._service.release()
            if not (beat.is_alive() or carry.is_alive()):
                self._service.close()

    def intent(self) -> str | None:
        """What the service said last that is asked.

        Raises:
            StepError: `ownership_lost`: this training has to end.
        """
        if self._lost is not None:
            raise self._lost
        return self._intent

    def obeyed(self) -> None:
        """The wish ends with the run: the next one has its own."""

    def keep(self, limit: int) -> None:
        """Remove all but the newest `limit` checkpoints, here and on S3."""
        super().keep(limit)
        newest = sorted({*self._older, *(path.name for path in self.checkpoints())}, key=step_of)[-limit:]
        self._older = {name: entries for name, entries in self._older.items() if name in newest}

    def write_metrics(self) -> None:
        """Write metrics.csv, the last thing after a checkpoint and what was told of it: now all of it goes to S3."""
        super().write_metrics()
        self._changed.set()

    def _wait_for_lease(self) -> None:
        told = False
        while not self._patiently(lambda: self._service.lease(self._key, renew=False)).held:
            if not told:
                print("Another process trains this job; waiting for it.", flush=True)
            told = True
            time.sleep(BEAT_SECONDS)

    def _keep_lease(self) -> None:
        pause = BEAT_SECONDS
        while not self._stopped.wait(pause):
            try:
                lease = self._service.lease(self._key, renew=True)
                if not lease.held:
                    raise StepError("ownership_lost")
                self._intent = lease.intent
                self._send_lines()
                pause = min(BEAT_SECONDS, lease.seconds / 4)
            except Away:
                pause = min(2 * pause, PAUSE_SECONDS)
            except StepError as problem:
                self._lost = problem
                return

    def _keep_mirror(self) -> None:
        pause = BEAT_SECONDS
        while not self._ending.is_set():
            if not self._changed.wait(BEAT_SECONDS):
                continue
            self._changed.clear()
            try:
                self._carry()
                pause = BEAT_SECONDS
            except Away:
                self._changed.set()
                self._ending.wait(pause)
                pause = min(2 * pause, PAUSE_SECONDS)
            except StepError as problem:
                self._lost = self._lost or problem
                return

    def _hand_in(self, carry: threading.Thread) -> None:
        """Everything that is here, before the lease is given back; a training that is whole is not lost for want of an answer."""
        self._ending.set()
        carry.join()
        if self._lost is not None:
            return
        try:
            self._patiently(self._send_all)
            self._patiently(self._carry)
        except StepError as problem:
            if problem.code.name != "service_unavailable":
                self._lost = problem
                return
            print(f"{problem.message} What it was to be told is lost.", flush=True)

    def _bring(self) -> None:
        """The lines, and of an unfinished training its newest whole checkpoint, of a finished one its result."""
        self._bring_lines()
        record = self._service.record()
        if record is None or record.train_key != self._key:
            return
        self._there = {entry.sha256 for entry in record.files}
        self._older = record.folders(CHECKPOINT)
        ended = [entry for entry in record.files if not entry.path.startswith(CHECKPOINT)]
        product = any(record.folders(name) for name in MAKES.values())
        whole = product and "result.json" in {entry.path for entry in ended}
        if whole and self._bring_files(ended):
            return
        for name in sorted(self._older, key=step_of, reverse=True):
            entries = self._older.pop(name)
            if self._bring_files(entries):
                return

    def _bring_lines(self) -> None:
        with self._sending, self.progress.open("wb") as file:
            while page := self._service.lines(file.tell()).encode():
                file.write(page)
            self._sent = file.tell()

    def _bring_files(self, entries: list[Entry]) -> bool:
        """Bring files to their places, folders whole; False if S3 does not have them as they were."""
        urls = self._service.addresses("get", _pieces(entries))
        try:
            for name in {entry.path.rpartition("/")[0] for entry in entries} - {""}:
                with self.making(name) as beside:
                    for entry in entries:
                        if entry.path.startswith(f"{name}/"):
                            self._service.get(urls[entry.sha256], beside / entry.path.rpartition("/")[2], entry)
            for entry in entries:
                if "/" not in entry.path:
                    self._service.get(urls[entry.sha256], self.path / entry.path, entry)
        except Missing:
            self._there -= {entry.sha256 for entry in entries}
            (self.path / "result.json").unlink(missing_ok=True)
            return False
        return True

    def _send_all(self) -> None:
        while self._send_lines():
            pass

    def _send_lines(self) -> bool:
        """Hand over the next lines; whether there were any."""
        with self._sending:
            if self._sent is None:
                return False
            with self.progress.open("rb") as file:
                file.seek(self._sent)
                data = file.read(LINES_BYTES)
            whole = data[: data.rfind(b"\n") + 1].decode()
            if whole:
                self._sent = self._service.send_lines(self._sent, whole)
            return bool(whole)

    def _carry(self) -> None:
        """Bring what is new to S3, newest first, then tell what led to it, and last the record of all there is."""
        entries: list[Entry] = []
        for place in [*reversed(self.checkpoints()), self.product]:
            with suppress(FileNotFoundError):  # a checkpoint may be removed while it is read: there is a newer one
                entries += self._carry_files({f"{place.name}/{path.name}": path for path in sorted(place.iterdir())})
        entries += self._carry_files(self._snapshots())
        older = [entry for name in self._older for entry in self._older[name]]
        record = Mirror(train_key=self._key, files=[*entries, *older])
        self._send_all()
        self._service.write_record(record)
        self._there = {entry.sha256 for entry in record.files}

    def _carry_files(self, files: dict[str, Path]) -> list[Entry]:
        entries = [self._entry(name, path) for name, path in files.items()]
        for entry in entries:
            if entry.sha256 not in self._there:
                piece = Piece(sha256=entry.sha256, size=entry.size)
                url = self._service.addresses("put", [piece])[piece.sha256]  # for each: it does not hold for long
                self._service.put(url, files[entry.path], piece)
                self._there.add(piece.sha256)
        return entries

    def _snapshots(self) -> dict[str, Path]:
        """Copies of the files that are written again while the training goes on: what is hashed is what is sent."""
        found = {}
        for name in ("metrics.csv", "result.json"):
            with suppress(FileNotFoundError):
                found[name] = Path(shutil.copyfile(self.path / name, self.path / f".carried-{name}"))
        return found

    def _entry(self, name: str, path: Path) -> Entry:
        stat = path.stat()
        version = path, stat.st_mtime_ns, stat.st_size
        if version not in self._hashes:
            self._hashes[version] = file_sha256(path)
        return Entry(path=name, sha256=self._hashes[version], size=stat.st_size)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do `work` until it is answered.

        Raises:
            StepError: `service_unavailable` after a quarter of an hour; what `work` raises.
        """
        deadline, pause = time.monotonic() + environment.upload_patience(), BEAT_SECONDS
        while True:
            try:
                return work()
            except Away as problem:
                if time.monotonic() >= deadline:
                    raise StepError("service_unavailable", f"{problem}.") from problem
                print(f"{problem}; trying again", flush=True)
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS)


def _pieces(entries: list[Entry]) -> list[Piece]:
    """The objects behind files, each once."""
    return list({entry.sha256: Piece(sha256=entry.sha256, size=entry.size) for entry in entries}.values())
