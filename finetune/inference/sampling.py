"""How the next token is chosen from the model's scores: greedy, temperature, top-p, penalties, a seed an answer.

Pure functions on tensors of one row. Nucleus sampling: Holtzman et al. 2019, arXiv:1904.09751. Penalties: as OpenAI documents them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

GREEDY_BELOW = 1e-5
"""Temperatures under this are taken for 0: dividing by them would overflow."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 is greedy.
        top_p: Only the likeliest tokens that together reach this probability; the likeliest always.
        frequency_penalty: Taken off a token's score for each time it was chosen.
        presence_penalty: Taken off once for a token that was chosen at all.
        seed: The same seed gives the same answer.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0


def generator(sampling: Sampling, index: int) -> torch.Generator:
    """The source of chance of answer `index` (from 0): answer 0 does not depend on how many there are."""
    source = torch.Generator()
    source.manual_seed((sampling.seed + index) % 2**63)
    return source


def choose(scores: torch.Tensor, sampling: Sampling, chosen: Counter[int], source: torch.Generator) -> int:
    """The next token.

    Args:
        scores: float, shape (vocabulary,). Not changed.
        sampling: How.
        chosen: How often each token stands in the answer so far.
        source: Of chance.
    """
    scores = penalise(scores.float(), sampling, chosen)
    if sampling.temperature < GREEDY_BELOW:
        return int(scores.argmax())
    probabilities = torch.softmax(scores / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        probabilities = nucleus(probabilities, sampling.top_p)
    return int(torch.multinomial(probabilities.cpu(), 1, generator=source))


def penalise(scores: torch.Tensor, sampling: Sampling, chosen: Counter[int]) -> torch.Tensor:
    """Scores with the penalties taken off; shape (vocabulary,)."""
    if not chosen or not (sampling.frequency_penalty or sampling.presence_penalty):
        return scores
    tokens = torch.tensor(list(chosen), device=scores.device)
    counts = torch.tensor(list(chosen.values()), dtype=scores.dtype, device=scores.device)
    penalty = counts * sampling.frequency_penalty + sampling.presence_penalty
    return scores.index_add(0, tokens, -penalty)


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of likeliest tokens that reaches `top_p`, others 0, not normalised; shape (vocabulary,)."""
    ordered, order = probabilities.sort(descending=True, stable=True)
    outside = ordered.cumsum(0) - ordered >= top_p
    outside[0] = False
    return probabilities.index_fill(0, order[outside], 0.0)
