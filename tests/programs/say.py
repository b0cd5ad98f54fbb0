"""Sends a text, half-closes, prints the answer. Usage: say.py HOST PORT TEXT

Exits with 3 and the error's name if the connection is refused or reset.
"""

import errno
import socket
import sys

host, port, text = sys.argv[1:]
try:
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        connection.sendall(text.encode())
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError as e:
            # Reset meanwhile: reading says so by its name.
            if e.errno != errno.ENOTCONN:
                raise
        answer = b""
        while data := connection.recv(65536):
            answer += data
        print(answer.decode())
        # A connection that is ended before it answers has told us nothing.
        sys.exit(0 if answer else 4)
except TimeoutError:
    print("ETIMEDOUT")
    sys.exit(5)
except OSError as e:
    print(errno.errorcode[e.errno])
    sys.exit(3)
