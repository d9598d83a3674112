"""What the trainer looks at after every optimiser step: was it asked to stop, by whom, and has its time run out.

Signals only raise a flag; the step under way is finished, and a checkpoint is written before the training ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.train.folder import TrainFolder
from finetune.train.ranks import agreed

Reason = Literal["paused", "interrupted", "max_runtime_exceeded"]


class Watch(TrainerCallback):  # type: ignore[misc]
    """Stops the training for a reason.

    Args:
        folder: Where control.json would be.
        seconds: How long the training has run so far, over all attempts.
        limit: Seconds it may run; None for no limit.
    """

    def __init__(self, folder: TrainFolder, seconds: Callable[[], float], limit: float | None) -> None:
        self._folder, self._seconds, self._limit = folder, seconds, limit
        self.signalled = False
        self.reason: Reason | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Stop after this step if there is a reason to, with a checkpoint. The last step ends the training anyway."""
        if state.global_step < state.max_steps and (reason := agreed(self._why())) is not None:
            self.reason = reason
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
        return control

    def _why(self) -> Reason | None:
        if self._folder.intent() is not None:
            return "paused"
        if self.signalled:
            return "interrupted"
        if self._limit is not None and self._seconds() > self._limit:
            return "max_runtime_exceeded"
        return None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as a wish to stop after the step under way; a second one means at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._signal) for number in (signal.SIGTERM, signal.SIGINT)}
        self._before = before
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        if not self.signalled:
            self.signalled = True
            return
        handler = self._before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
