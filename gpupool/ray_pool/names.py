"""Names that the launcher, Serve's proxies and the replicas have in common. Imports nothing."""

from __future__ import annotations

APP = "gpupool"
"""Serve's application, and its deployment's name in Ray's tools and logs: replica."""
DEPLOYMENT = "replica"

DOOR_VARIABLE = "GPUPOOL_RAY_DOOR"
"""What the proxies have to know, as JSON; there is no other way to tell them anything."""

MOVED_HEADER = b"x-gpupool-moved"
"""On an answer of a replica that asks for another one to answer; never sent to a client."""

FULL_STATUS = 429
"""What Serve is told to answer with when its queue is full. Nothing else of its own has it."""
