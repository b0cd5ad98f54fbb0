"""Sends a text, prints the answer or the error's name, and stays until its standard input ends.

Usage: seen.py tcp|udp HOST PORT TEXT SECONDS

Its socket is closed before it prints: whoever looks at the program may take the time they need.
"""

import errno
import socket
import sys

kind, host, port, text, patience = sys.argv[1:]
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[kind]
(family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, int(port), type=kind)
answer = b""
try:
    with socket.socket(family, kind, protocol) as connection:
        connection.settimeout(float(patience))
        connection.connect(address)
        connection.send(text.encode())
        if kind == socket.SOCK_STREAM:
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65536):
                answer += data
        else:
            answer = connection.recv(65536)
    print(answer.decode(), flush=True)
except TimeoutError:
    print("ETIMEDOUT", flush=True)
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)
sys.stdin.read()
