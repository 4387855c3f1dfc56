"""The Engine protocol and the values that cross it, in the worker process.

An engine is the object that generates text. To add one, write a class with the attributes and
methods of `Engine` below and start the pool with `--infer_type package.module:ClassName`;
nothing has to be inherited or registered. Imports no engine library.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from gpupool.errors import RequestError

if TYPE_CHECKING:
    from gpupool.exchange import App
    from gpupool.partition import Slice
    from gpupool.settings import Settings


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a completion's text must be, from its first character to its last."""

    kind: Literal["json_schema", "json_object", "regex", "ebnf"]
    text: str = ""  # the schema as JSON, the expression or the grammar; "" for json_object


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to generate one sequence. Already checked: finite, in range, known to the engine."""

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = -1  # -1: no limit
    min_p: float = 0.0
    presence_penalty: float = 0.0  # over generated tokens, as OpenAI defines it
    frequency_penalty: float = 0.0  # over generated tokens, as OpenAI defines it
    repetition_penalty: float = 1.0  # over prompt and generated tokens, multiplicative
    seed: int | None = None  # within [-2**63, 2**63)
    stop: tuple[str, ...] = ()  # the matched text is not part of the completion
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # k: each generated token's own and the k best alternatives
    grammar: Grammar | None = None  # never with min_tokens or ignore_eos
    beam_width: int = 1  # only for beam_search
    num_beams_returned: int = 1  # only for beam_search
    length_penalty: float = 1.0  # only for beam_search
    early_stopping: bool | str = False  # only for beam_search: True, False or "never"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and its natural-log probability before temperature, penalties and bias."""

    token_id: int  # -1: not known
    token: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()  # the k best, best first; each with an empty top


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as somebody else has counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished text. finish_reason: "stop" (end token or stop string) or "length"."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    usage: Usage | None = None  # where the tokens themselves are not known here

    @property
    def num_tokens(self) -> int:
        """Generated ones."""
        return len(self.token_ids) if self.usage is None else self.usage.completion_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text that will not change any more, and the tokens behind it (either may be empty)."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a generate (one completion) or a beam_search (the best first)."""

    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """The end of a score: one natural-log probability per prompt token after the first.

    logprobs[i] belongs to prompt[i + 1]; len(logprobs) == len(prompt) - 1. top[i] holds the
    best tokens at the place of prompt[i + 1], best first; () if none were asked for.
    """

    logprobs: tuple[float, ...]
    top: tuple[tuple[TokenLogprob, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Embedded:
    """The end of an embed: one vector of length 1."""

    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that has no result: EngineError, EngineDead or Cancelled."""

    error: RequestError


LastEvent = Finished | Scored | Embedded | Failed
Event = Chunk | LastEvent
Sink = Callable[[Event], None]
"""Receives the events of one request, in order, from any thread of the engine's choosing.

It returns quickly, never blocks and never raises. The last event, and only the last, is a
LastEvent; every accepted request gets exactly one.
"""

Report = Callable[[str, float | None], None]
"""Called while loading with a phase ("downloading", "loading weights", ...) and a fraction
of it in 0..1, None where unknown. Returns at once; any thread."""


UNKNOWN_CONTEXT = 1 << 31
"""ModelInfo.context_tokens where somebody else checks lengths."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded engine knows of its model."""

    name: str
    context_tokens: int  # prompt and completion together
    vocab_size: int
    slots: int  # sequences that run in one batch; more wait inside the engine
    dtype: str = "auto"
    generates: bool = True  # False: it only embeds, ranks or classifies
    kv_cache_tokens: int | None = None  # room for them in requests of context_tokens, if it tells


class Engine(Protocol):
    """One loaded model that runs many sequences at once, in one continuous batch.

    Lifetime: constructed and `load`ed once, on a thread of the worker that is not its main
    thread; used by many threads at once until `die`. The constructor is cheap, touches no GPU
    and imports no heavy library. Heavy imports stand inside methods. Child processes stay in
    the worker's process group, so that the guardian can end them.

    All prompts are token ids: the API tokenizes with `tokenize`, checks lengths against
    `model`, and hands over prompts that fit, with `max_tokens` cut so that
    len(prompt) + max_tokens <= model.context_tokens.

    An error that one request causes is that request's alone: it ends with Failed(EngineError),
    and the others go on. When the engine itself is gone, every request, running or new, ends
    with Failed(EngineDead) and `dead_reason` says why; the worker is then replaced.
    """

    capabilities: ClassVar[frozenset[str]]
    """Names from `gpupool.capabilities.FEATURES` that this engine honours. A request that needs
    another is answered 400 and never reaches the engine."""

    default_params: ClassVar[Mapping[str, float]]
    """What /infer assumes for parameters that a request leaves out, by their /infer names;
    {} is SamplingParams' own defaults."""

    computes_in_children: ClassVar[bool]
    """Whether child processes do all the computing. The worker's own CPU time, which reading
    requests takes too, is then no sign that the engine still works."""

    model: ModelInfo
    """Valid once `load` has returned."""

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None: ...

    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        """Refuse what cannot work, by ConfigError; runs before any fork, in a short-lived
        process of its own, without a GPU: is the library there, do `settings.engine_args`
        parse, is the model a model. May import heavily."""

    def load(self, report: Report) -> None:
        """Block until the model answers, its slow first-use paths warmed up. Raises on failure."""

    def tokenize(self, text: str) -> list[int]:
        """The model's own tokenizer with its default special tokens. Thread-safe."""

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """Start one sequence and return at once. Thread-safe.

        Events: Chunks as text appears, then Finished with one completion. The same seed gives
        the same text, alone or among others. request_id is unique among running requests.
        A grammar that cannot be compiled ends in Failed(BadRequest).
        """

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink, top: int = 0) -> None:
        """Start to compute the prompt's log-probabilities; one Scored event, with the `top` best
        tokens at each place. Thread-safe.

        Exact: each value is what a forward pass over the prompt gives, before temperature. A
        token that is among the best has the same value there.
        """

    def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """Start a beam search; Finished with num_beams_returned completions. Thread-safe.
        Called only if "beam_search" is among the capabilities."""

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step; it ends with Failed(Cancelled) unless already over.
        Unknown ids are ignored. Returns at once. Thread-safe."""

    def num_inflight(self) -> int:
        """Sequences inside the engine, accepted and not yet ended: while there are any it has
        to compute on this machine or to progress, or it is taken for hung (see watchdog). An
        engine that only asks another machine says 0. Cheap, never blocks, thread-safe."""

    def last_progress(self) -> float:
        """time.monotonic() of the last step, a prompt's too. Cheap, never blocks, thread-safe."""

    @property
    def dead_reason(self) -> str | None:
        """Why the engine can serve no more, or None. Cheap, thread-safe."""

    def die(self) -> None:
        """End now, child processes too, within 10 s; idempotent, from any thread, also while
        `load` runs. Requests in the engine end with Failed(EngineDead), within 1 s even if
        the engine hangs."""


@runtime_checkable
class Measured(Protocol):
    """What an engine may offer besides: metrics of its own for the pool's /metrics."""

    def metrics_text(self) -> str:
        """Prometheus' text format, this engine's process alone. Thread-safe, quick; called once
        per scrape while the engine is loaded."""


@runtime_checkable
class Decodes(Protocol):
    """What an engine may offer besides: text of tokens. Without it, the OpenAI API has no
    /detokenize, and no log-probabilities of prompts."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens, special ones written out. Thread-safe, may block."""

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text; a part of a character, often. Thread-safe, quick."""


@runtime_checkable
class Chats(Protocol):
    """What an engine may offer besides: conversations, by the model's own template. Without it,
    the OpenAI API has no chat completions."""

    calls_tools: bool
    """Whether the model is taught to call tools as <tool_call>{JSON}</tool_call>."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> list[int]:
        """The conversation as a prompt. `options` are the template's own variables, and
        add_generation_prompt and continue_final_message. BadRequest with the template's message
        if it refuses. Thread-safe, may block."""


@runtime_checkable
class Embeds(Protocol):
    """What an engine may offer besides: texts as vectors."""

    def embed(self, request_id: str, prompt: Sequence[int], sink: Sink) -> None:
        """Start to compute one vector; one Embedded event. Thread-safe."""


@dataclass(frozen=True, slots=True)
class OpenAI:
    """An engine's own OpenAI API."""

    app: App
    fields: Mapping[str, frozenset[str]]
    """By the path of a route (api.openai.routes): the names its body may have."""
    media_by_url: bool = False
    """Whether it may fetch pictures and sounds from the network for a client."""
    leaves: Callable[[str, Mapping[str, Any]], bool] | None = None
    """Which requests, by path and body, it leaves to the pool's own application; None: none."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """By the path of a route that is not there: what it needs, for the 400 that refuses it."""
    whole: frozenset[str] = frozenset()
    """Paths of routes whose lists are not to be spread over the workers, item by item."""


@runtime_checkable
class SpeaksOpenAI(Protocol):
    """What an engine may offer besides: the OpenAI API by an application of its own. For one that
    does not, the pool's own speaks it over `generate` and `score`."""

    def openai(self) -> OpenAI:
        """Called once, after `load`. The application is called on the event loop of `spawn`, with
        whole, checked requests; the body is in scope["state"]["body"], too, as it was parsed."""

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run something on the engine's event loop; EngineDead once it cannot. Everything that
        runs there is cancelled when the engine dies. Thread-safe."""

    def is_lost(self) -> bool:
        """Whether what failed just now may have failed because the engine is dead: at least as
        early as `dead_reason`. Cheap, thread-safe."""
