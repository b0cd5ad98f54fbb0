"""Reads to the end of the stream, then sends everything back in reverse. Usage: reverse_server.py PORT"""

import socket
import sys

with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
    while True:
        accepted, _ = listener.accept()
        with accepted:
            text = b""
            while data := accepted.recv(65536):
                text += data
            accepted.sendall(text[::-1])
