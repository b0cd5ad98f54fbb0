"""Listens, and connects to itself, but lets nothing in at the client's end: the handshake is not done.

Usage: half_open.py HOST [SECONDS]

After so many seconds it lets everything in. Prints the client's port and the server's, then how it went; stays until its
standard input ends.
"""

import ctypes
import select
import socket
import struct
import sys

# asm-generic/socket.h
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27

host = sys.argv[1]
patience = float(sys.argv[2]) if len(sys.argv) > 2 else None
family = socket.AF_INET6 if ":" in host else socket.AF_INET
server, client = socket.socket(family), socket.socket(family)
for end in (server, client):
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 3 if patience else 1)
server.bind((host, 0))
server.listen()
# BPF_RET | BPF_K, 0: of every packet, nothing is taken.
nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
client.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(nothing)))
client.setblocking(False)
client.connect_ex(server.getsockname())
print(client.getsockname()[1], server.getsockname()[1], flush=True)
poll = select.poll()
poll.register(client, select.POLLOUT)
if patience:
    poll.poll(patience * 1000)
    client.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
poll.poll()
went = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
client.close()
print("failed" if went else "connected", flush=True)
sys.stdin.read()
