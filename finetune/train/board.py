"""TensorBoard's files of a training, in its train/ folder: made of the lines of progress.jsonl, one file an attempt.

A file that is taken up again tells TensorBoard which steps were done anew, so that each shows once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

FOLDER = "tensorboard"
NAMES = {
    "loss": "train/loss",
    "train_accuracy": "train/token_accuracy",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "rewards_margin": "train/rewards_margin",
    "rewards_accuracy": "train/rewards_accuracy",
    "valid_loss": "validation/loss",
    "valid_mean_token_accuracy": "validation/token_accuracy",
}
"""Fields of a line, and what they are called on the board."""


class Board:
    """One attempt's file.

    Args:
        folder: The train/ folder.
        after: The step it goes on from; what older files tell of later ones is passed over.
    """

    def __init__(self, folder: Path, after: int) -> None:
        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=after + 1 if after else None, write_to_disk=True)

    def show(self, step: int, numbers: dict[str, Any]) -> None:
        """Add the numbers of a line that have a name."""
        for field, name in NAMES.items():
            value = numbers.get(field)
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def say(self, step: int, samples: list[dict[str, str]]) -> None:
        """Add what was answered to held-out questions."""
        for number, sample in enumerate(samples):
            self._writer.add_text(
                f"validation/sample_{number}", f"{sample['prompt']}\n\n---\n\n{sample['answer']}", step
            )

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
