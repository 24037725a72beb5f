"""How many bytes this process has sent over TCP, as the kernel counts them: what gloo's ranks exchange."""

from __future__ import annotations

import os
import socket
import struct

SIZE, BYTES_SENT = 232, 200  # of Linux's struct tcp_info, and where tcpi_bytes_sent and tcpi_bytes_retrans are in it


def sent_bytes() -> int:
    """Over the connections that are open."""
    return sum(_of_descriptor(int(name)) for name in os.listdir("/proc/self/fd"))


def _of_descriptor(number: int) -> int:
    try:
        if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
            return 0
        with socket.socket(fileno=os.dup(number)) as opened:
            information = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
    except OSError:  # closed meanwhile, or no connection
        return 0
    sent, again = struct.unpack_from("=2Q", information, BYTES_SENT)
    return int(sent - again)
