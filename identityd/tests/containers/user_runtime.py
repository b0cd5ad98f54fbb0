"""A user's own runtime, which says whatever its user likes: user_runtime.py SOCKET ID PID"""

import json
import socketserver
import sys
from http.server import BaseHTTPRequestHandler

path, container, pid = sys.argv[1], sys.argv[2], int(sys.argv[3])
TOLD = {
    f"/containers/{container}/json": {
        "Id": container,
        "Name": "/mine",
        "Image": "sha256:" + "0123456789abcdef" * 4,
        "State": {"Running": True, "Pid": pid},
        "Config": {"Image": "localhost/mine:1", "Labels": None},
    },
    "/info": {"DriverStatus": [["Backing Filesystem", "extfs"]]},
}


class Runtime(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = json.dumps(TOLD.get(self.path, {})).encode()
        self.send_response(200 if self.path in TOLD else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

    def address_string(self):
        return "somebody"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


Server(path, Runtime).serve_forever()
