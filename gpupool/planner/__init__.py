"""Does a model fit, and how to cut the GPUs: answered before anything is loaded (preflight, cli).

The arithmetic is pure, with its sources named: `config` (a config.json -> the `model`, by
`families`, `weights`, `vision` and `dtypes`), `split` and `kv_cache` (its bytes on each GPU), `fit`
(the room that is left), `option`, `remedies` and `advice` (the plan). Read is in `checkpoint`
(`tensors`, `gguf`, `hub`) and `machine`; shown in `render` and `report`. Nothing here imports torch
or an engine.
"""
