"""How many bytes this process has sent over TCP, as the kernel counts them: what gloo's ranks exchange."""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from typing import Any

SIZE, BYTES_SENT = 232, 200  # of Linux's struct tcp_info, and where tcpi_bytes_sent and tcpi_bytes_retrans are in it


Connection = tuple[Any, Any]  # its address here, and there


def sent_bytes() -> int:
    """Over the connections that are open."""
    return sum(sent_by_connection().values())


def sent_by_connection() -> Counter[Connection]:
    """Over each of the connections that are open."""
    found: Counter[Connection] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as opened:
                    information = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
                    sent, again = struct.unpack_from("=2Q", information, BYTES_SENT)
                    found[opened.getsockname(), opened.getpeername()] += sent - again
        except OSError:  # closed meanwhile, or no connection
            continue
    return found


def sent_between_nodes(of_ranks: list[Counter[Connection]], per_node: int) -> list[int]:
    """What each rank has sent to ranks of other nodes, from all ranks' bytes by connection."""
    ends = {(there, here): rank for rank, sent in enumerate(of_ranks) for here, there in sent}
    return [
        sum(size for end, size in sent.items() if ends.get(end, rank) // per_node != rank // per_node)
        for rank, sent in enumerate(of_ranks)
    ]
