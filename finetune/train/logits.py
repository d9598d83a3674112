"""Cross-entropy over a wide vocabulary, a few positions at a time: the logits of a micro-batch never stand in memory at once.

A model is run without its output layer; then the output layer, with whatever the model does to logits after it (scaling,
soft-capping), is run on pieces of the hidden states. The gradient is taken piece by piece while the logits are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

LOGITS_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""What the logits of a piece may take, in float32."""

Tail = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states, shape (k, hidden), to logits, shape (k, vocabulary)."""


class Summed(torch.autograd.Function):  # type: ignore[misc]
    """Negative log-likelihood of targets, summed; and how many targets were the most likely token."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, tail: Tail, size: int, *weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (float32) and hits (int64), both scalars.

        Args:
            ctx: Autograd's.
            hidden: Shape (k, hidden).
            targets: int64, shape (k,).
            tail: The output layer and what comes after it.
            size: Positions a piece.
            weights: Those of the tail that may be trained.
        """
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        grads = [
            torch.zeros_like(of) if needed else None for of, needed in zip((hidden, *weights), wanted, strict=True)
        ]
        loss = torch.zeros((), device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        for begin in range(0, len(hidden), size):
            piece = hidden[begin : begin + size].detach().requires_grad_(wanted[0])
            target = targets[begin : begin + size]
            with torch.set_grad_enabled(any(wanted)):
                logits = tail(piece)
            likely = logits.detach().float().log_softmax(-1)
            loss -= likely.gather(1, target[:, None]).sum()
            correct += (likely.argmax(-1) == target).sum()
            if any(wanted):
                _add(grads, begin, piece, weights, logits, _residual(likely, target).to(logits.dtype))
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        ctx.wanted = wanted
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> Any:
        """What was found in the forward pass, scaled."""
        found = iter(ctx.saved_tensors)
        scaled = [next(found) * above[0] if needed else None for needed in ctx.wanted]
        return scaled[0], None, None, None, *scaled[1:]


def _residual(likely: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The gradient of the loss to the logits, in the place of their log-probabilities."""
    likely.exp_()
    likely[torch.arange(len(target), device=target.device), target] -= 1
    return likely


def _add(
    grads: list[torch.Tensor | None],
    begin: int,
    piece: torch.Tensor,
    weights: Sequence[torch.Tensor],
    logits: torch.Tensor,
    residual: torch.Tensor,
) -> None:
    """Put a piece's gradient to its place, and add those of the weights."""
    of = [tensor for tensor, grad in zip((piece, *weights), grads, strict=True) if grad is not None]
    places = [grad for grad in grads if grad is not None]
    if grads[0] is not None:
        places[0] = places[0][begin : begin + len(piece)]
    for place, grad in zip(places, torch.autograd.grad(logits, of, residual), strict=True):
        place += grad


def summed(
    hidden: torch.Tensor, targets: torch.Tensor, tail: Tail, size: int, weights: Sequence[torch.Tensor] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of `targets`, summed, and how many of them were the most likely token.

    Args:
        hidden: Shape (k, hidden).
        targets: int64, shape (k,).
        tail: From hidden states to logits.
        size: Positions at a time, by `piece_size`.
        weights: Those of the tail that may be trained.
    Returns:
        float32 scalar with its graph, int64 scalar.
    """
    made = Summed.apply(hidden, targets, tail, size, *weights)
    return made[0], made[1]


def piece_size(model: Any) -> int:
    """How many positions of a model go through its output layer at a time."""
    vocabulary: int = model.config.get_text_config().vocab_size
    return max(16, LOGITS_BYTES.get(model.device.type, LOGITS_BYTES["cpu"]) // (4 * vocabulary))


def hidden_at(model: Any, tokens: torch.Tensor, wanted: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Tail]:
    """Run a causal language model up to its output layer.

    Args:
        model: A transformers or peft model.
        tokens: int64, shape (rows, n).
        wanted: bool, same shape, k of them True: positions whose next token is predicted.
        inputs: What else its forward takes, such as position_ids.
    Returns:
        The hidden states there, shape (k, hidden), and the rest of the model.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    body, head = getattr(whole, whole.base_model_prefix), model.get_output_embeddings()
    kept: list[Any] = []

    def keep_body(_body: Any, _inputs: Any, output: Any) -> None:
        kept.append(output)

    def select(_layer: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kept.append(given[0][wanted])
        return given[0][:1, :0], *given[1:]

    hooks = [body.register_forward_hook(keep_body), head.register_forward_pre_hook(select)]
    try:
        model(input_ids=tokens, use_cache=False, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    output, hidden = kept

    def tail(piece: torch.Tensor) -> torch.Tensor:
        with _instead(body, type(output)(last_hidden_state=piece[None])):
            logits: torch.Tensor = whole(input_ids=tokens[:1, :1], use_cache=False).logits[0]
        return logits

    return hidden, tail


@contextmanager
def _instead(body: Any, output: Any) -> Iterator[None]:
    """Let a model's body answer `output` without computing."""
    before = body.__dict__.get("forward")
    body.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        del body.forward
        if before is not None:
            body.forward = before
