"""The API of a shop: counts each visit in Redis, and asks PostgreSQL whether it is there.

Usage: shop_api.py PORT REDIS_PORT POSTGRES_PORT; both are asked on 127.0.0.1."""

import http.server
import socket
import sys
import time

PORT, REDIS, POSTGRES = map(int, sys.argv[1:4])


def ask(port, question, longest):
    with socket.create_connection(("127.0.0.1", port), timeout=15) as server:
        server.sendall(question)
        answer = server.recv(longest)
        # Whoever serves a connection by a process of its own is seen only as long as that lives.
        time.sleep(0.3)
        return answer


class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        visits = ask(REDIS, b"INCR visits\r\n", 64).decode().strip(":\r\n")
        # SSLRequest: the server answers by one letter.
        letter = ask(POSTGRES, b"\0\0\0\x08\x04\xd2\x16\x2f", 1).decode()
        page = f"visits {visits}, database {letter}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("0.0.0.0", PORT), Api).serve_forever()
