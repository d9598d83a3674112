"""What answers a request: its one adapter, the base alone, or what a combination decides for this question.

Runs in the engine's thread, because a question is compared as the base sees it. Sources: docs/serving.md.
"""

from __future__ import annotations

from collections import OrderedDict

from finetune.inference import prompt, routing
from finetune.inference.adapters import AdapterFiles
from finetune.inference.answering import Answering, Prepared, Settled
from finetune.inference.errors import bad
from finetune.inference.model import LoadedBase
from finetune.inference.prompt import Prompt, tokenizer_of
from finetune.inference.request import ChatRequest, Combination
from finetune.inference.routing import Router

THRESHOLD = 0.3
"""Score below which the base answers, where the combination does not say; not calibrated."""
ROUTERS = 16
"""Combinations whose vectors are kept in memory."""


class Settling:
    """Decides what answers.

    Args:
        most: Tokens an answer gets where the request does not say.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._routers: OrderedDict[tuple[str, ...], Router] = OrderedDict()

    def settle(self, base: LoadedBase, answering: Answering) -> tuple[Settled, tuple[AdapterFiles, ...]]:
        """What answers a request.

        Args:
            base: The request's, in memory.
            answering: The request.
        Returns:
            It, and the adapters that are needed for it.
        Raises:
            EngineError: 400: the combination cannot be answered in this way.
            StepError: `manifest_mismatch`: vectors that are none.
        """
        request, prepared = answering.request, answering.prepared
        combination = request.llamaflow.combination
        if combination is None:
            chosen = prepared.adapters
            return Settled(self._prompt(request, prepared, chosen), tuple(files.key for files in chosen)), chosen
        if _method(combination, prepared) == "arrow":
            chosen = tuple({files.key: files for files in prepared.adapters}.values())
            told = {"method": "arrow", "adapters": [member.name for member in combination.members]}
            mix = tuple(files.key for files in chosen)
            return Settled(self._prompt(request, prepared, chosen[:1]), mix, told), chosen
        return self._routed(base, request, prepared, combination)

    def _routed(
        self, base: LoadedBase, request: ChatRequest, prepared: Prepared, combination: Combination
    ) -> tuple[Settled, tuple[AdapterFiles, ...]]:
        threshold = combination.threshold if combination.threshold is not None else THRESHOLD
        ids = tokenizer_of(prepared.folder, prepared.base.template).ids(request.question())[-routing.LONGEST :]
        names = [member.name for member in combination.members]
        told: dict[str, object] = {"method": "route", "adapter": None, "score": None, "scores": {}}
        chosen: tuple[AdapterFiles, ...] = ()
        if ids:
            choice = self._router(prepared).choose(routing.vector(base.hidden(ids)).cpu(), threshold)
            told["scores"] = {name: round(score, 4) for name, score in zip(names, choice.scores, strict=True)}
            told["score"] = round(max(choice.scores), 4)
            if choice.index is not None:
                chosen = (prepared.adapters[choice.index],)
                told["adapter"] = names[choice.index]
        settled = Settled(
            self._prompt(request, prepared, chosen),
            tuple(files.key for files in chosen),
            told | {"threshold": threshold},
        )
        return settled, chosen

    def _router(self, prepared: Prepared) -> Router:
        keys = tuple(files.key for files in prepared.adapters)
        if keys not in self._routers:
            read = [routing.read(files.questions) for files in prepared.adapters if files.questions is not None]
            if len({vectors.shape[1] for vectors in read}) > 1:
                raise bad("The question vectors of these adapters are of different bases.", "model")
            self._routers[keys] = Router(read)
            while len(self._routers) > ROUTERS:
                self._routers.popitem(last=False)
        self._routers.move_to_end(keys)
        return self._routers[keys]

    def _prompt(self, request: ChatRequest, prepared: Prepared, chosen: tuple[AdapterFiles, ...]) -> Prompt:
        if prepared.prompt is not None:
            return prepared.prompt
        template = chosen[0].template if chosen else prepared.base.template
        return prompt.build(request, prepared.folder, template, most=self._most)


def _method(combination: Combination, prepared: Prepared) -> str:
    """How a combination chooses: by its questions where it can and nothing else is asked."""
    without = [
        member.name
        for member, files in zip(combination.members, prepared.adapters, strict=True)
        if files.questions is None
    ]
    if combination.method == "route" and without:
        message = (
            f"{', '.join(without)} came without question vectors, so requests cannot be routed by question. Use the "
            "method arrow, or train here."
        )
        raise bad(message, "model", "unsupported_operation")
    return combination.method or ("arrow" if without else "route")
