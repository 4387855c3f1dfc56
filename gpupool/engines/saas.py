"""Engine on a model that somebody else hosts: its requests go to an address (worker process).

It has no weights, no GPU and no child process. Imports no engine library; litellm is imported
after the fork, and only where the host is one of its vendors.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gpupool.capabilities import ENGINES
from gpupool.engines.base import (
    UNKNOWN_CONTEXT,
    Finished,
    ModelInfo,
    OpenAI,
    Report,
    SamplingParams,
    Sink,
)
from gpupool.engines.on_loop import OnLoop
from gpupool.engines.outlet import Outlet
from gpupool.engines.saas_args import parse_engine_args
from gpupool.engines.saas_check import HostUnreachable, check_address
from gpupool.engines.saas_client import Client, DirectClient
from gpupool.engines.saas_errors import HostBroken, error_of
from gpupool.engines.saas_fields import ABSENT, EMBEDDINGS, FIELDS, ask_host
from gpupool.engines.saas_generation import (
    VOCAB_SIZE,
    body_of,
    completion_of,
    path_of,
    text_of,
    tokens_of,
)
from gpupool.engines.saas_host import Host
from gpupool.engines.saas_key import read_key, secrets_of
from gpupool.engines.saas_openai import SaasOpenAI
from gpupool.engines.saas_vendor import VendorClient, check_vendor, import_litellm
from gpupool.errors import ConfigError
from gpupool.extras import install_line
from gpupool.partition import Slice
from gpupool.settings import Settings, hosted_key

log = logging.getLogger(__name__)


class SaasEngine(OnLoop):
    """One hosted model; see engines.base.Engine. A prompt's tokens are its characters."""

    capabilities: ClassVar[frozenset[str]] = ENGINES["saas"]
    default_params: ClassVar[Mapping[str, float]] = {}
    computes_in_children: ClassVar[bool] = False
    model: ModelInfo

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        super().__init__("saas-requests")
        self._settings = settings
        self._args = parse_engine_args(settings.engine_args)
        self._name_there = self._args.name_there(settings.model_name)
        self._secrets = secrets_of(None)
        self._host: Host | None = None

    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        """See Engine.check. A host that does not answer may do so later: that is no refusal."""
        args = parse_engine_args(settings.engine_args)
        key = read_key(args, hosted_key())
        url = args.direct_url(settings.model_name)
        if url is None:
            _require_litellm()
            check_vendor(args, settings.model_name, key)
            return
        try:
            check_address(url, args, args.name_there(settings.model_name), key)
        except HostUnreachable as error:
            log.warning("%s", error)

    # Loading.

    def _load(self, report: Report) -> None:
        key = read_key(self._args, hosted_key())
        self._secrets = secrets_of(key)
        client = self._connect(key, report)
        self._host = Host(
            client,
            self._secrets,
            max_retries=self._args.max_retries,
            max_parallel=self._args.max_parallel,
        )
        self._requests.start()
        self.model = ModelInfo(
            name=self._settings.model_name,
            context_tokens=UNKNOWN_CONTEXT,
            vocab_size=VOCAB_SIZE,
            slots=self._args.max_parallel,
        )

    def _connect(self, key: str | None, report: Report) -> Client:
        """A client of a host that was asked whether it is there, as far as it can be."""
        model_name = self._settings.model_name
        url = self._args.direct_url(model_name)
        if url is None:
            report("importing litellm", None)
            import_litellm()
            check_vendor(self._args, model_name, key)
            return VendorClient(self._args, model_name, key)
        report("asking the host for its models", None)
        warning = check_address(url, self._args, self._name_there, key)
        if warning is not None:
            log.warning("%s", warning)
        return DirectClient(url, key, self._args)

    # Requests.

    def tokenize(self, text: str) -> list[int]:
        """See Engine.tokenize. The host has the tokenizer."""
        return tokens_of(text)

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """See Engine.generate. The completion comes whole; its token ids are not known."""
        self._requests.submit(
            Outlet(request_id, sink), lambda: self._generate(text_of(prompt), params)
        )

    async def _generate(self, prompt: str, params: SamplingParams) -> Finished:
        assert self._host is not None
        path = path_of(self._args.infer_as)
        body = ask_host(path, body_of(prompt, params, path), self._args, self._name_there)
        # Clients of /infer take an error for the result, and do not ask again.
        reply = await self._host.ask(path, body, patience_s=self._settings.max_wait_s)
        self._note_progress()
        try:
            return Finished((completion_of(reply.content, path, params.logprobs is not None),))
        except HostBroken as failure:
            log.error("the host failed: %s", self._secrets.hide(str(failure)))
            raise error_of(failure, self._secrets) from None

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink, top: int = 0) -> None:
        """Not among the capabilities."""
        raise NotImplementedError("a host tells no log-probabilities of prompts")

    def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """Not among the capabilities."""
        raise NotImplementedError("a host has no beam search")

    def openai(self) -> OpenAI:
        """See engines.base.SpeaksOpenAI."""
        assert self._host is not None
        name = (self._settings.served_model_name or (self.model.name,))[0]
        app = SaasOpenAI(self._host, self._args, name, self._name_there, self._note_progress)
        return OpenAI(app, FIELDS, absent=ABSENT, whole=frozenset({EMBEDDINGS}))

    # Life and death.

    def num_inflight(self) -> int:
        """See Engine.num_inflight. Nothing is computed here."""
        return 0

    def die(self) -> None:
        """See Engine.die."""
        self._requests.end("the engine was told to end")
        self._requests.close(self._close_host)

    async def _close_host(self) -> None:
        if self._host is not None:
            await self._host.aclose()


def _require_litellm() -> None:
    if importlib.util.find_spec("litellm") is None:
        raise ConfigError(
            "--infer_type saas needs litellm for this vendor, which is not installed; "
            f"{install_line('saas')}; an address that speaks OpenAI's API needs only "
            "--saas.base_url"
        )
