"""Sends back what it receives, with a process for each connection. Usage: forking.py PORT

Each says "child" and its number. They end with their connections; the server that listens stays.
"""

import os
import signal
import socket
import sys

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, _ = server.accept()
    if os.fork():
        connection.close()
        continue
    server.close()
    print("child", os.getpid(), flush=True)
    try:
        while data := connection.recv(4096):
            connection.sendall(data)
    except ConnectionResetError:
        print("reset by peer", flush=True)
    os._exit(0)
