"""The HTTP routes, in the worker. They know `engines.base`, never a concrete engine."""
