"""Opens many connections, uses each, and closes none before all were used. Usage: crowd.py HOST PORT COUNT"""

import asyncio
import sys


async def one(host, port, n):
    reader, writer = await asyncio.open_connection(host, port)
    text = f"{n:08}".encode()
    writer.write(text)
    await writer.drain()
    assert await reader.readexactly(8) == text, "an answer to somebody else"
    return reader, writer


async def main():
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    together = await asyncio.gather(*(one(host, port, n) for n in range(count)))
    for reader, writer in together:
        writer.write_eof()
        assert await reader.read() == b"", "more than was sent came back"
        writer.close()
    print(f"{len(together)} at once")


asyncio.run(main())
