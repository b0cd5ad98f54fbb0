"""As idle.c, as a script that changes nothing itself: idle.py connect HOST PORT, idle.py serve HOST PORT."""

import socket
import sys


def said(what):
    print(what, flush=True)


what, host, port, *_ = sys.argv[1:]
sys.stdin.readline()
if what == "serve":
    # It stays open: who listens is looked at until the connection is let through.
    listener = socket.create_server((host, int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    said("listening")
    connection, _ = listener.accept()
    connection.sendall(connection.recv(1))
else:
    connection = socket.create_connection((host, int(port)))
    connection.sendall(b".")
    connection.recv(1)
said("open")
try:
    connection.recv(1)
except ConnectionResetError:
    said("reset")
