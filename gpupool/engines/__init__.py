"""The engines: the protocol in `base`, one file per engine. Importing this package loads none."""
