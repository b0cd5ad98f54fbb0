"""Sends a text as one datagram and prints the answer. Usage: udp_say.py HOST PORT TEXT

Exits with 3 and the error's name if nobody listens there.
"""

import errno
import socket
import sys

host, port, text = sys.argv[1:]
(family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)
with socket.socket(family, kind, protocol) as connection:
    connection.settimeout(15)
    try:
        connection.connect(address)
        connection.send(text.encode())
        print(connection.recv(65536).decode())
    except OSError as e:
        print(errno.errorcode[e.errno])
        sys.exit(3)
