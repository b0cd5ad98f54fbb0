"""Holds a connection open and idle, and says what becomes of it. Usage: hold.py HOST PORT

Prints "open" when the first byte came back, "echoed" after each SIGUSR1 that made it send and receive another,
and "end of stream" or the error's name when the connection is over.
"""

import errno
import selectors
import signal
import socket
import sys

alarm, wakeup = socket.socketpair()
alarm.setblocking(False)
wakeup.setblocking(False)
signal.set_wakeup_fd(wakeup.fileno())
signal.signal(signal.SIGUSR1, lambda *_: None)

try:
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    connection.sendall(b".")
    if not connection.recv(1):
        raise ConnectionAbortedError(errno.ECONNABORTED, "ended before the first byte")
    print("open", flush=True)
    ready = selectors.DefaultSelector()
    ready.register(alarm, selectors.EVENT_READ)
    ready.register(connection, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is alarm:
                alarm.recv(16)
                connection.sendall(b".")
            elif connection.recv(1):
                print("echoed", flush=True)
            else:
                print("end of stream", flush=True)
                sys.exit(0)
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)
    sys.exit(3)
