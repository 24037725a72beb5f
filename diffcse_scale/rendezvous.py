"""How ranks meet: the store through which they find each other, and the process group that they form."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from diffcse_scale.distributed import CONTROL_PATIENCE, PROCESS_GROUP, rank, world_size
from diffcse_scale.foundation.descriptors import allow_all_descriptors
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError, first_line


def free_port() -> int:
    """A port of this machine that is free now, for a rendezvous."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_store: dist.Store | None = None


def join(backend: str, seconds: float, device: torch.device | None = None) -> None:
    """Meet the other ranks as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say, and form the process group.

    Args:
        seconds: how long to wait for the other ranks.
        device: this rank's device, for backends that need to know it.

    Raises:
        InputError: some ranks did not come (the message names them), one came twice, or this process may not open as
            many connections as it needs.
        DistNetworkError: this is rank 0 and it cannot listen.
    """
    global _store
    if dist.is_initialized():
        return
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    check_descriptors(number, count)
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    # torchrun's agent listens itself, and keeps listening when it restarts the ranks
    listens = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    address, port, patience = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=seconds)
    try:
        if not listens:
            _in_parts(seconds, OSError, lambda part: _reach(address, port, part))
        shared = dist.TCPStore(address, port, is_master=listens, timeout=patience, wait_for_workers=False)
    except (dist.DistError, OSError) as error:
        if listens:
            raise
        raise InputError(
            f"Rank {number} on {host_name()} found no other rank at {place} within {seconds:.0f} seconds "
            f"({first_line(error)}); check that rank 0 started there and that this machine can reach it."
        ) from None
    store = dist.PrefixStore(f"attempt {attempt}", shared)
    if store.add(f"arrivals of rank {number}", 1) > 1:
        raise InputError(
            f"Rank {number} has come twice to {place}, now from {host_name()}; RANK must differ between processes, "
            "and MASTER_PORT between runs."
        )
    store.set(host_key(number), host_name())
    if store.add("arrivals", 1) == count:
        hosts = store.multi_get([host_key(other) for other in range(count)])
        store.set(ALL_HERE, str(ranks_per_node(hosts)))
    try:
        _in_parts(seconds, dist.DistError, lambda part: store.wait([ALL_HERE], timedelta(seconds=part)))
    except dist.DistError:
        raise InputError(
            f"Only some of the {count} ranks came within {seconds:.0f} seconds: missing is {_missing(store, count)}; "
            "check that their nodes started them, or ask for fewer."
        ) from None
    per_node = int(store.get(ALL_HERE))
    check_descriptors(number, count, per_node)
    group = dist.PrefixStore("group", store)
    bind_to_the_masters_network()
    os.environ.setdefault(BY_ONE_QUESTION, "1")
    bound = device if count > 1 else None
    # a short timeout of a collective would keep counting while its ranks are suspended
    dist.init_process_group(
        backend, timeout=CONTROL_PATIENCE, store=group, rank=number, world_size=count, device_id=bound
    )
    PROCESS_GROUP.lie_on_nodes(per_node)
    _store = store


# all are here: its value is the number of ranks of each node, which the last rank to come has found for all of them
ALL_HERE, MISSING = "all are here", "who is missing"
# 1: gloo asks the store for the addresses of all ranks at once instead of one after another
BY_ONE_QUESTION = "GLOO_ENABLE_STORE_V2_API"


def host_key(number: int) -> str:
    """The store's key for the host name of a rank."""
    return f"host of rank {number}"


def ranks_per_node(hosts: Sequence[bytes]) -> int:
    """The number of ranks of each node, from each rank's host in rank order.

    Returns:
        1 if there is only one node, or if nodes differ in their number of ranks or are not blocks of consecutive ranks.

    Example:
        >>> from diffcse_scale.rendezvous import ranks_per_node
        >>> ranks_per_node([b"a", b"a", b"b", b"b"]), ranks_per_node([b"a", b"b", b"a", b"b"])
        (2, 1)
    """
    nodes, count = list(dict.fromkeys(hosts)), hosts.count(hosts[0])
    blocks = [node for node in nodes for _ in range(count)]
    return count if len(nodes) > 1 and blocks == list(hosts) else 1


def _missing(store: dist.Store, count: int) -> str:
    """The ranks that have not come. The first waiting rank checks each one and tells the others."""
    try:
        if store.add("looks who is missing", 1) == 1:
            found = ", ".join(str(other) for other in range(count) if not store.check([host_key(other)]))
            store.set(MISSING, found)
        return store.get(MISSING).decode()
    except STORE_ERRORS:
        return "not known, since rank 0 has left"


PARTS = 10


def _in_parts(seconds: float, failure: type[Exception], wait: Callable[[float], None]) -> None:
    """Call `wait` for `seconds` in parts; it raises `failure` on timeout. A suspended process loses only one part."""
    for part in range(1, PARTS + 1):
        try:
            return wait(seconds / PARTS)
        except failure:
            if part == PARTS:
                raise


def _reach(address: str, port: int, seconds: float) -> None:
    """Wait until a process listens there."""
    start = time.monotonic()
    while True:
        left = start + seconds - time.monotonic()
        try:
            return socket.create_connection((address, port), max(left, 0.1)).close()
        except OSError:
            if left <= 0:
                raise
            time.sleep(min(left, 0.2))


LAZY = "TORCH_GLOO_LAZY_INIT"  # 1: gloo connects two ranks when they first communicate, not all pairs at the start
OTHER_DESCRIPTORS = 64  # open files of a rank besides its connections, and some to spare


def descriptors_needed(number: int, count: int, per_node: int = 1) -> int:
    """Descriptors that a rank opens. Measured with 1 to 8 ranks and two gloo groups, ours and DeepSpeed's."""
    connections = 2 * ((count - 1).bit_length() * 2 + 5) if os.environ.get(LAZY) == "1" else 2 * count + 2
    of_the_store = 2 * count + 1 if number == 0 else 0
    of_two_levels = 0 if per_node == 1 else per_node + count // per_node + 6
    return connections + of_the_store + of_two_levels + OTHER_DESCRIPTORS


def check_descriptors(number: int, count: int, per_node: int = 1) -> None:
    """Check that this process may open all the connections that it needs, because gloo aborts otherwise.

    Raises:
        InputError: it may not, even after its soft limit was raised as far as possible.
    """
    needed, allowed = descriptors_needed(number, count, per_node), allow_all_descriptors()
    if count > 1 and needed > allowed:
        raise InputError(
            f"Rank {number} of {count} on {host_name()} needs about {needed:,} open files, most of them connections to "
            f"other ranks, and may have {allowed:,.0f}; raise the hard limit there (ulimit -Hn; for SLURM LimitNOFILE "
            f"in slurmd's service), or set {LAZY}=1 for all ranks."
        )


# launchers that start ranks on several nodes set these to the number of nodes: SLURM, DeepSpeed, torchrun
NODES = ("SLURM_JOB_NUM_NODES", "CROSS_SIZE", "GROUP_WORLD_SIZE")
NETWORK = "GLOO_SOCKET_IFNAME"


def bind_to_the_masters_network() -> None:
    """Make gloo listen on the interface that reaches MASTER_ADDR, unless the user has named one.

    By default gloo listens on the address of the host's own name, which on many machines is 127.0.1.1.
    """
    if NETWORK in os.environ or all(int(os.environ.get(name) or 1) == 1 for name in NODES):
        return
    # on the master's own node its name may resolve to the loopback: then use the default route's interface
    for address in (os.environ["MASTER_ADDR"], ANYWHERE):
        if (name := interface_to(address)) not in (None, "lo"):
            os.environ[NETWORK] = str(name)
            return


ANYWHERE = "192.0.2.1"  # reserved, belongs to nobody (RFC 5737)


def interface_to(host: str) -> str | None:
    """The interface that packets to `host` would leave by; nothing is sent. None if `host` cannot be reached."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            mine = probe.getsockname()[0]
    except OSError:
        return None
    # any address in 127.0.0.0/8 belongs to the loopback interface
    wanted = "127.0.0.1" if mine.startswith("127.") else mine
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if any(a.address == wanted for a in addresses)), None)


# what may be raised when the rank that serves the store has left
STORE_ERRORS = (dist.DistError, RuntimeError)
Store = dist.Store


FAILURE = "first failure"


def first_failure(words: str) -> str | None:
    """The message of the first rank that failed: `words` if it is this one, None if the store cannot be reached.

    The existing connection is used, because it breaks at once if rank 0 has gone. A new one would wait.
    """
    try:
        return words if _store is None or world_size() == 1 else _store.compare_set(FAILURE, "", words).decode()
    except STORE_ERRORS:
        return None


def failure_is_told(store: Store | None = None) -> bool:
    """Whether a failed rank has left a message; False if the store is out of reach. A thread needs its own `store`."""
    store = _store if store is None else store
    try:
        return store is not None and store.check([FAILURE])
    except STORE_ERRORS:
        return False


def linger(seconds: float = 2.0) -> None:
    """Keep a failed rank 0 alive for a moment: it serves the store where the other ranks look up the reason."""
    if _store is None or world_size() == 1 or dist.get_rank() != 0:
        return
    if dist.get_backend() == "gloo":  # NCCL would wait for them
        dist.destroy_process_group()
    time.sleep(seconds)


def lost_a_peer(error: BaseException) -> bool:
    """Whether an error says only that another rank has gone. This is never the reason why a run failed.

    NCCL uses one class for a lost peer and for this rank's own problems, so its errors count as this rank's own.
    """
    gloo = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    return gloo or isinstance(error, dist.DistNetworkError)


def leave(alone: bool = False) -> None:
    """Leave the process group before Python shuts down.

    gloo's threads hold the tensors of the last operation for a moment longer. A thread that releases them while
    Python shuts down aborts the process, and a finished run would exit with -6.

    Args:
        alone: the other ranks may not be leaving; NCCL would wait for them.
    """
    global _store
    if dist.is_initialized() and not (alone and dist.get_backend() == "nccl"):
        dist.destroy_process_group()
        PROCESS_GROUP.lie_on_nodes(1)
        _store = None


def control_store() -> dist.Store | None:
    """A new connection to the store that all ranks share, for use in a thread; None for a single process."""
    return None if _store is None or world_size() == 1 else _store.clone()  # type: ignore[attr-defined]


def all_reduce_rate(device: torch.device, mebibytes: int = 16, repeats: int = 5) -> dict[str, float]:
    """Check that all ranks reach each other, and measure how fast. Must be called on every rank.

    Returns:
        `latency_ms` of four bytes, and `gigabytes_per_second` (1e9 bytes, "bus" bandwidth: 2 (W - 1) / W times the
        bytes of one rank). Both are medians measured on this rank.

    Raises:
        InputError: a sum is wrong.
    """
    small = torch.ones(1, device=device)
    large = torch.ones(mebibytes * 2**18, device=device)
    latency, seconds = (_median_seconds(tensor, repeats) for tensor in (small, large))
    if float(small) != world_size() or float(large[-1]) != world_size():
        raise InputError(
            f"An all-reduce over {world_size()} ranks gave a wrong sum on rank {rank()} ({host_name()}); exclude that "
            "node, or check its network."
        )
    moved = 2 * (world_size() - 1) / world_size() * large.numel() * 4
    return {"latency_ms": latency * 1e3, "gigabytes_per_second": moved / seconds / 1e9}


def _median_seconds(tensor: torch.Tensor, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first one opens connections
        tensor.fill_(1)
        start = time.perf_counter()
        PROCESS_GROUP.all_reduce(tensor)
        tensor.view(-1)[0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
