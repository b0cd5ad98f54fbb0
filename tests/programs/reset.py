"""Answers or asks with one byte, then resets the connection.

Usage: reset.py serve PORT | reset.py connect HOST PORT
"""

import socket
import struct
import sys


def reset(connection):
    # SO_LINGER with a time of zero: close() sends a reset.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


if sys.argv[1] == "serve":
    with socket.create_server(("::", int(sys.argv[2])), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        while True:
            accepted, _ = listener.accept()
            if accepted.recv(1):
                reset(accepted)
else:
    connection = socket.create_connection((sys.argv[2], int(sys.argv[3])))
    connection.sendall(b".")
    assert connection.recv(1) == b"."
    reset(connection)
