"""Sends and receives a lot, both ways at once, and prints both digests.

Usage: bulk.py serve PORT MEGABYTES | bulk.py connect HOST PORT MEGABYTES
"""

import hashlib
import os
import socket
import sys
import threading

MEGABYTE = 1 << 20


def send(connection, megabytes, digests):
    digest = hashlib.sha256()
    block = os.urandom(MEGABYTE)
    for n in range(megabytes):
        # Each megabyte differs, so that one lost, repeated or swapped is noticed.
        numbered = n.to_bytes(8, "big") + block[8:]
        digest.update(numbered)
        connection.sendall(numbered)
    connection.shutdown(socket.SHUT_WR)
    digests["sent"] = digest.hexdigest()


def receive(connection, digests):
    digest = hashlib.sha256()
    buffer = bytearray(4 * MEGABYTE)
    total = 0
    while n := connection.recv_into(buffer):
        digest.update(memoryview(buffer)[:n])
        total += n
    digests["received"] = digest.hexdigest()
    digests["bytes"] = total


def exchange(connection, megabytes):
    digests = {}
    threads = [
        threading.Thread(target=send, args=(connection, megabytes, digests)),
        threading.Thread(target=receive, args=(connection, digests)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(digests["sent"], digests["received"], digests["bytes"], flush=True)


if sys.argv[1] == "serve":
    with socket.create_server(("::", int(sys.argv[2])), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        while True:
            accepted, _ = listener.accept()
            with accepted:
                exchange(accepted, int(sys.argv[3]))
else:
    with socket.create_connection((sys.argv[2], int(sys.argv[3]))) as connection:
        exchange(connection, int(sys.argv[4]))
