"""How near the GPUs are to each other: NVLink, NUMA node, PCIe level (master, in NVML).

Called by gpupool.gpus while NVML is open. pynvml is imported inside functions.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from gpupool.gpus import Gpu, Link
from gpupool.nvml_faults import LostGpu, ask


def list_links(gpus: tuple[Gpu, ...]) -> dict[frozenset[str], Link]:
    """Every pair of whole GPUs that both answer. MIG devices cannot reach each other."""
    import pynvml

    handles: dict[str, Any] = {}
    peers: dict[str, list[str]] = {}
    for gpu in gpus:
        if gpu.parent_uuid is not None:
            continue
        try:
            handle = ask(pynvml.nvmlDeviceGetHandleByUUID, gpu.uuid, default=None)
            if handle is not None:
                peers[gpu.uuid] = _nvlink_peers(handle)
                handles[gpu.uuid] = handle
        except LostGpu:
            continue
    links = {}
    for a, b in combinations([gpu for gpu in gpus if gpu.uuid in handles], 2):
        try:
            link = _read_link((a, handles[a.uuid]), (b, handles[b.uuid]), peers[a.uuid])
        except LostGpu:
            continue
        links[frozenset((a.uuid, b.uuid))] = link
    return links


def _read_link(first: tuple[Gpu, Any], second: tuple[Gpu, Any], peers: list[str]) -> Link:
    import pynvml

    (gpu, a), (other, b) = first, second
    index = pynvml.NVML_P2P_CAPS_INDEX_NVLINK
    has_nvlink = ask(pynvml.nvmlDeviceGetP2PStatus, a, b, index, default=-1) == (
        pynvml.NVML_P2P_STATUS_OK
    )
    # Links that go through a switch name the switch, so none of them counts as direct.
    direct = peers.count(_bus_id(b)) if has_nvlink else 0
    level = ask(
        pynvml.nvmlDeviceGetTopologyCommonAncestor, a, b, default=pynvml.NVML_TOPOLOGY_SYSTEM
    )
    return Link(
        num_nvlinks=max(direct, 1) if has_nvlink else 0,
        same_model=gpu.name == other.name,
        same_numa=gpu.numa_node is not None and gpu.numa_node == other.numa_node,
        pcie_level=min(max(level // 10, 0), 5),
    )


def _nvlink_peers(handle: Any) -> list[str]:
    """The bus id at the other end of each active NVLink."""
    import pynvml

    peers = []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = ask(pynvml.nvmlDeviceGetNvLinkState, handle, link, default=None)
        if state is None:
            break
        if state:
            remote = ask(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link, default=None)
            if remote is not None:
                peers.append(_text(remote.busId))
    return peers


def _bus_id(handle: Any) -> str:
    import pynvml

    info = ask(pynvml.nvmlDeviceGetPciInfo, handle, default=None)
    return _text(info.busId) if info is not None else ""


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
