"""FlagScale's `serve` configuration, in each of its forms (pure; the import command).

The experiment's file with its serve file composed into it, or a serve file alone: a list with
`engine` and `engine_args`, or the older `model_args.vllm_model`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from gpupool.migrate import llama_cpp_args, vllm_args
from gpupool.migrate.flagscale_keys import DEPLOY, ENTRY, EXPERIMENT, TOP
from gpupool.migrate.hydra import Tree, resolve
from gpupool.migrate.keys import Draft, Refused, apply, flatten
from gpupool.migrate.pools import Imported, finish

PORT = 8000
ENGINE_TABLES = {"vllm": vllm_args.KEYS, "llama_cpp": llama_cpp_args.KEYS}


def is_flagscale(content: Any) -> bool:
    """Whether a file's content is one of the forms."""
    if isinstance(content, list):
        return bool(content) and all(isinstance(e, dict) and "serve_id" in e for e in content)
    return isinstance(content, dict) and bool({"experiment", "serve", "model_args"} & set(content))


def read(content: Any) -> Imported:
    """The pools of a composed configuration."""
    config: Tree = {"serve": content} if isinstance(content, list) else dict(content)
    if "model_args" in config:
        config = {"serve": config}
    common = Draft()
    try:
        config = resolve(config)
    except Refused as refusal:
        common.refusals.append(str(refusal))
    experiment = copy.deepcopy(config.pop("experiment", None) or {})
    serve = config.pop("serve", None) or []
    config.pop("defaults", None)
    cli_args = _take_experiment(common, experiment)
    apply(common, TOP, flatten(TOP, config))
    entries = [*_entries(serve, common)]
    drafts = []
    for index, entry in enumerate(entries):
        draft = copy.deepcopy(common)
        if len(entries) > 1:
            draft.name = str(entry.get("serve_id", draft.name))
            if "port" in draft.values:
                draft.values["port"] += index
        _take_entry(draft, entry, cli_args)
        drafts.append(draft)
    if not drafts:
        common.refusals.append("serve: there is no model in it")
    return finish(drafts or [common], PORT)


def _take_experiment(common: Draft, experiment: Tree) -> Tree:
    """What holds for all models; returns the engine arguments of the command line."""
    deploys = [experiment.pop("deploy", None)]
    cli_args: Any = None
    if isinstance(runner := experiment.get("runner"), dict):
        deploys.append(runner.pop("deploy", None))
        if isinstance(runner.get("cli_args"), dict):
            cli_args = runner["cli_args"].pop("engine_args", None)
    apply(common, EXPERIMENT, flatten(EXPERIMENT, experiment), "experiment.")
    for deploy in deploys:
        if isinstance(deploy, dict) and "port" in common.values:
            deploy.pop("port", None)  # the command line's wins there too
        _take_deploy(common, deploy)
    return _engine_args(common, cli_args)


def _engine_args(common: Draft, given: Any) -> Tree:
    """--engine-args: JSON, or what YAML has made of it already."""
    try:
        found = json.loads(given) if isinstance(given, str) else given or {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        common.refusals.append("--engine-args: not a JSON object")
        return {}
    return found


def _take_deploy(draft: Draft, deploy: Any) -> None:
    if isinstance(deploy, dict):
        named = {str(key).replace("-", "_"): value for key, value in deploy.items()}
        apply(draft, DEPLOY, flatten(DEPLOY, named), "deploy.")


def _entries(serve: Any, common: Draft) -> Iterator[Tree]:
    """The models, each as an entry of the newer form."""
    if isinstance(serve, list):
        yield from (entry for entry in serve if isinstance(entry, dict))
        return
    _take_deploy(common, serve.get("deploy"))
    for name, args in (serve.get("model_args") or {}).items():
        args = vllm_args.normalized(args.items())
        for switch in args.pop("action_args", None) or []:
            args[str(switch).replace("-", "_")] = True
        yield {"serve_id": name, "engine": "vllm", "engine_args": args}
    for name in serve:
        if name not in ("deploy", "model_args"):
            common.refusals.append(f"serve.{name}: not a known key; leave it out")


def _take_entry(draft: Draft, entry: Tree, cli_args: Tree) -> None:
    common_args = entry.get("engine_args") or {}
    specific = entry.get("engine_args_specific") or {}
    rest = {k: v for k, v in entry.items() if k not in ("engine_args", "engine_args_specific")}
    apply(draft, ENTRY, flatten(ENTRY, rest), "serve.")
    table = ENGINE_TABLES.get(draft.engine)
    if table is None:
        if common_args or specific:
            draft.refusals.append(f"serve.engine_args: not of {draft.engine}; leave it out")
        return
    draft.values.setdefault("infer_type", draft.engine)
    args = {**(specific.get(draft.engine) or {}), **common_args, **cli_args}
    args = vllm_args.normalized(args.items())
    for name in specific:
        if name != draft.engine:
            draft.notes.append(f"engine_args_specific.{name}: of another engine")
    for name, setting in (("port", "port"), ("model", "model_name")):
        if setting in draft.values:
            args.pop(name, None)  # the command line's and deploy's win there too
    apply(draft, table, args.items(), "engine_args.")
