"""Executes another program. Usage: become.py HOW PROGRAM [WORD...]

plain      as it is
memory     from memory: a copy that never was on disk (memfd_create(2))
deleted    from a copy that is deleted first
HOST:PORT  with a connection to there as its standard input
"""

import os
import shutil
import socket
import sys
import tempfile

how, program, *words = sys.argv[1:]
words.insert(0, program)
if how == "plain":
    os.execv(program, words)
elif how == "memory":
    memory = os.memfd_create("program")
    with open(program, "rb") as original:
        os.sendfile(memory, original.fileno(), 0, os.fstat(original.fileno()).st_size)
    # Executed by its descriptor while that is open for writing it would be ETXTBSY.
    readable = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(memory)
    os.execve(readable, words, os.environ)
elif how == "deleted":
    with tempfile.NamedTemporaryFile() as copy:
        shutil.copy(program, copy.name)
        os.chmod(copy.name, 0o755)
        readable = os.open(copy.name, os.O_RDONLY | os.O_CLOEXEC)
    os.execve(readable, words, os.environ)
else:
    host, port = how.rsplit(":", 1)
    connection = socket.create_connection((host.strip("[]"), int(port)))
    os.dup2(connection.fileno(), 0)
    os.execv(program, words)
