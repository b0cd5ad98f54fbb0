"""Sends back each datagram it receives. Usage: udp_echo.py PORT"""

import selectors
import socket
import sys

ready = selectors.DefaultSelector()
for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    server = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind((host, int(sys.argv[1])))
    ready.register(server, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in ready.select():
        data, peer = key.fileobj.recvfrom(65536)
        key.fileobj.sendto(data, peer)
