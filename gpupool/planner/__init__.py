"""Does a model fit, and how to cut the GPUs: answered before anything is loaded (preflight, cli).

The arithmetic is pure: `config`, `weights`, `kv_cache`, `split`, `fit`, `advice`. Reading is in
`machine` and `checkpoint`. Nothing here imports torch or an engine.
"""
