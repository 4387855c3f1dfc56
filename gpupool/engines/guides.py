"""Grammars that guide a generation: they are compiled one after the other, beside the running batch
(worker process, a thread of its own). Imports xgrammar only inside functions.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gpupool.engines.base import Failed, Grammar
from gpupool.engines.grammar_compiler import GrammarCompiler
from gpupool.engines.outlet import Outlet
from gpupool.errors import BadRequest, Cancelled, EngineDead, EngineError, RequestError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Guide:
    """Where one sequence is in its grammar. Used by the thread that samples, alone."""

    def __init__(self, compiled: Any, vocab_size: int) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._mask = xgrammar.allocate_token_bitmask(1, vocab_size)

    def restrict(self, row: torch.Tensor) -> None:
        """Minus infinity for every token that cannot come next, in place. An end token can only
        where the text may end."""
        import xgrammar

        if self._matcher.is_terminated():
            return
        self._matcher.fill_next_token_bitmask(self._mask)
        xgrammar.apply_token_bitmask_inplace(row[None], self._mask.to(row.device))

    def can_begin(self) -> bool:
        """Whether any token can come first."""
        self._matcher.fill_next_token_bitmask(self._mask)
        return bool(self._mask.any())

    def take(self, token: int) -> bool:
        """The token that was chosen; whether it fits. Behind the end everything does: a step may
        be under way when a sequence ends."""
        return bool(self._matcher.is_terminated() or self._matcher.accept_token(token))


Begin = Callable[[Guide], None]


class GuideMaker:
    """The thread that compiles, from construction to `stop`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_tokens: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_tokens = list(end_tokens)
        self._compiler: GrammarCompiler | None = None
        self.last_progress = time.monotonic()
        self._asked: queue.SimpleQueue[tuple[Outlet, Grammar, Begin] | None] = queue.SimpleQueue()
        self._outlets: dict[str, Outlet] = {}
        self._lock = threading.Lock()
        self._reason: str | None = None
        threading.Thread(target=self._work, name="grammars", daemon=True).start()

    @property
    def is_able(self) -> bool:
        """Whether there can be any grammar: the library is there, and the model can end."""
        return find_spec("xgrammar") is not None and bool(self._end_tokens)

    @property
    def num_inflight(self) -> int:
        """Requests whose grammar is being compiled, or waits for it."""
        return len(self._outlets)

    def add(self, outlet: Outlet, grammar: Grammar, begin: Begin) -> None:
        """Call `begin` with a guide, on the thread; or end the outlet. Any thread."""
        with self._lock:
            reason = self._reason
            if reason is None:
                self._outlets[outlet.request_id] = outlet
                self._asked.put((outlet, grammar, begin))
        if reason is not None:
            outlet.end(Failed(EngineDead(reason)))

    def cancel(self, request_id: str) -> None:
        """End a request that has not begun. Any thread."""
        with self._lock:
            outlet = self._outlets.get(request_id)
        if outlet is not None:
            outlet.end(Failed(Cancelled("the request was cancelled")))

    def stop(self, reason: str) -> None:
        """End every request with EngineDead. Any thread."""
        with self._lock:
            self._reason = self._reason or reason
            outlets = list(self._outlets.values())
            self._asked.put(None)
        if self._compiler is not None:
            self._compiler.close()
        for outlet in outlets:
            outlet.end(Failed(EngineDead(reason)))

    # On the thread.

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            outlet, grammar, begin = asked
            if not outlet.is_over:
                self._serve(outlet, grammar, begin)
            with self._lock:
                self._outlets.pop(outlet.request_id, None)

    def _serve(self, outlet: Outlet, grammar: Grammar, begin: Begin) -> None:
        try:
            guide = Guide(self._compile(grammar), self._vocab_size)
            if not guide.can_begin():
                raise BadRequest(
                    f"this {grammar.kind} cannot be used: no text fits it", code="invalid_grammar"
                )
        except RequestError as error:
            outlet.end(Failed(error))
            return
        except Exception:
            log.exception("a grammar could not be compiled request=%s", outlet.request_id)
            outlet.end(Failed(EngineError("the engine failed on this request")))
            return
        finally:
            self.last_progress = time.monotonic()
        try:
            begin(guide)
        except Exception:
            log.exception("a guided request could not begin request=%s", outlet.request_id)
            outlet.end(Failed(EngineError("the engine failed on this request")))

    def _compile(self, grammar: Grammar) -> Any:
        if self._compiler is None:
            self._compiler = self._make_compiler()
        return self._compiler.compile(grammar)

    def _make_compiler(self) -> GrammarCompiler:
        if not self.is_able:
            raise BadRequest(
                "this server restricts no texts: its model has no end token, or xgrammar is not "
                "installed (pip install '.[transformers]')",
                code="unsupported",
            )
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(
            self._tokenizer, vocab_size=self._vocab_size, stop_token_ids=self._end_tokens
        )
        return GrammarCompiler(info)
