"""What a request needs, brought and checked before it is queued: base, adapters, and the prompt where it is known.

Several requests at a time, in threads; nothing is computed and no model loaded here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune.inference import adapters, prompt
from finetune.inference.adapters import AdapterFiles
from finetune.inference.answering import Prepared
from finetune.inference.request import AdapterSource, ChatRequest
from finetune.model import cache, fetch
from finetune.steps import S3, Base, ModelSource


class Finder:
    """Finds bases and adapters, and remembers them.

    Args:
        folder: The cache.
        allow_local: Take `file://` adapters.
        most: Tokens an answer gets where the request does not say.
    """

    def __init__(self, folder: Path, *, allow_local: bool, most: int) -> None:
        self._cache, self._allow_local, self._most = folder, allow_local, most
        self._bases: dict[str, tuple[Path, Base]] = {}
        self._adapters: dict[tuple[AdapterSource, str], AdapterFiles] = {}

    def find(self, request: ChatRequest) -> Prepared:
        """What a request needs. Blocking.

        Raises:
            EngineError: The messages cannot be used.
            StepError: Base or adapter cannot be had, or are not what they should be.
        """
        target, access = request.llamaflow, S3()
        folder, base = self.base(target.base, access)
        members = [member.adapter for member in target.combination.members] if target.combination else []
        wanted = [target.adapter] if target.adapter is not None else members
        found = tuple(self.adapter(source, base, access) for source in wanted)
        ready = None
        if target.combination is None:
            template = found[0].template if found else base.template
            ready = prompt.build(request, folder, template, most=self._most)
        return Prepared(folder, base, found, ready)

    def adapter(self, source: AdapterSource, base: Base, access: S3) -> AdapterFiles:
        """An adapter's files, checked."""
        known = (source, base.revision)
        files = self._adapters.get(known)
        if files is None or not files.folder.is_dir():
            files = adapters.obtain(source, base, access, self._cache, allow_local=self._allow_local)
            self._adapters[known] = files
        cache.touch(files.folder)
        return files

    def names(self, is_loaded: Callable[[str], bool]) -> list[str]:
        """What the service calls the adapters that are loaded."""
        return [source.id for (source, _), files in list(self._adapters.items()) if is_loaded(files.key)]

    def forget(self) -> None:
        """Look again from the next request on."""
        self._bases.clear()
        self._adapters.clear()

    def base(self, source: ModelSource, access: S3) -> tuple[Path, Base]:
        """A base's folder, and what it is."""
        key = source.model_dump_json()
        known = self._bases.get(key)
        if known is None or not known[0].is_dir():
            folder, base, _ = fetch.obtain(source, access, self._cache)
            known = self._bases[key] = folder, base
        elif source.kind != "path":
            cache.touch(known[0])
        return known
