"""Holds a connection as one program, and then lets another have it, or changes itself.

Usage: changeling.py HOST PORT HOW [WORD...] connects; changeling.py serve PORT HOW [WORD...] accepts one connection.
Prints "open" when the first byte came back, or was sent back. At SIGUSR1 it does HOW, prints "done" if it still can,
sends a byte if the other end answers, and prints "echoed" for its answer. At the end it prints "end of stream" or the
error's name.

exec WORD...   executes these words, with the connection as standard input
spawn WORD...  forks a child that does so, and keeps the connection itself
fork           forks a child that sends and receives a byte, and keeps the connection itself
hand SOCKET    hands the connection to whoever listens there, and keeps it itself
user ID        becomes another user
load LIBRARY   loads a library (dlopen(3))
leave HOW...   ends, and leaves the connection to a child that does HOW at the next SIGUSR1; the child prints "left" and its PID
nothing        does nothing
"""

import errno
import os
import signal
import socket
import sys


def become(connection, words):
    os.dup2(connection.fileno(), 0)
    os.execv(words[0], words)


def spawn(connection, words):
    if not os.fork():
        become(connection, words)


def fork(connection, _words):
    if not os.fork():
        say(connection)
        print("echoed to the child", flush=True)
        os._exit(0)
    os.wait()


def hand(connection, words):
    with socket.socket(socket.AF_UNIX) as heir:
        heir.connect(words[0])
        socket.send_fds(heir, [b"."], [connection.fileno()])


def user(_connection, words):
    os.setuid(int(words[0]))


def load(_connection, words):
    import ctypes

    ctypes.CDLL(words[0])


def leave(connection, words):
    if os.fork():
        os._exit(0)
    print("left", os.getpid(), flush=True)
    signal.sigwait([signal.SIGUSR1])
    CHANGES[words[0]](connection, words[1:])


def nothing(_connection, _words):
    pass


CHANGES = {
    "exec": become,
    "spawn": spawn,
    "fork": fork,
    "hand": hand,
    "user": user,
    "load": load,
    "leave": leave,
    "nothing": nothing,
}


def say(connection):
    connection.sendall(b".")
    if not connection.recv(1):
        print("end of stream", flush=True)
        sys.exit(3)


def opened(host, port):
    if host == "serve":
        listener = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
        connection, _ = listener.accept()
        connection.sendall(connection.recv(1))
    else:
        connection = socket.create_connection((host, int(port)))
        say(connection)
    print("open", flush=True)
    return connection


signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
host, port, how, *words = sys.argv[1:]
try:
    connection = opened(host, port)
    signal.sigwait([signal.SIGUSR1])
    CHANGES[how](connection, words)
    print("done", flush=True)
    if host != "serve" and how in ("fork", "nothing"):
        say(connection)
        print("echoed", flush=True)
    while connection.recv(1):
        pass
    print("end of stream", flush=True)
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)
    sys.exit(3)
