"""Listens, and connects to itself, but lets nothing in at the client's end: the handshake is not done.

Usage: half_open.py HOST

Prints the client's port and the server's, then how it went; stays until its
standard input ends.
"""

import ctypes
import select
import socket
import struct
import sys

# asm-generic/socket.h
SO_ATTACH_FILTER = 26

host = sys.argv[1]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
server, client = socket.socket(family), socket.socket(family)
for end in (server, client):
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    end.bind((host, 0))
server.listen()
# BPF_RET | BPF_K, 0: of every packet, nothing is taken.
nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
client.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(nothing)))
client.setblocking(False)
client.connect_ex(server.getsockname())
print(client.getsockname()[1], server.getsockname()[1], flush=True)
poll = select.poll()
poll.register(client, select.POLLOUT)
poll.poll()
went = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
client.close()
print("failed" if went else "connected", flush=True)
sys.stdin.read()
