"""Has a connection that another program made. Usage: heir.py (waits|writes) [SOCKET]

The connection is standard input, or comes in through SOCKET. Waiting, it says nothing; writing, it sends a byte for each
that comes back. At the end it prints "heir: " and the error's name or "end of stream".
"""

import errno
import socket
import sys


def received(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("listening", flush=True)
        giver, _ = listener.accept()
        _, fds, _, _ = socket.recv_fds(giver, 1, 1)
        return fds[0]


how, *path = sys.argv[1:]
connection = socket.socket(fileno=received(path[0]) if path else 0)
print("heir: has it", flush=True)
try:
    if how == "writes":
        connection.sendall(b"!")
    while connection.recv(1):
        if how == "writes":
            connection.sendall(b"!")
    print("heir: end of stream", flush=True)
except OSError as e:
    print("heir:", errno.errorcode[e.errno], flush=True)
