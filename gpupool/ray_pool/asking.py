"""Having some replica of the pool run an item of a batch (replica process, Serve's event loop)."""

from __future__ import annotations

import asyncio
from typing import Any

from gpupool.errors import EngineDead, Unavailable
from gpupool.ray_pool.names import APP, DEPLOYMENT
from gpupool.ray_pool.piece import Piece, PieceResult


class Asker:
    """By Serve's router, which knows who has a free slot. One a replica."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def __call__(self, piece: Piece) -> PieceResult:
        """See spread.Ask."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
        from ray.serve.handle import DeploymentHandle

        self._handle = self._handle or DeploymentHandle(DEPLOYMENT, APP).run_piece
        asked = self._handle.remote(piece)
        try:
            found: PieceResult = await asked
        except asyncio.CancelledError:
            asked.cancel()
            raise
        except RayActorError:
            raise EngineDead("the replica died while it ran this item") from None
        except (BackPressureError, DeploymentUnavailableError):
            raise Unavailable("no replica can run this item now; try again") from None
        return found
