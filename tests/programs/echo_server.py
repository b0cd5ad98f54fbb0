"""Sends back what it receives. Usage: echo_server.py PORT"""

import asyncio
import sys


async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        print("end of stream", flush=True)
    except ConnectionResetError:
        print("reset by peer", flush=True)
    finally:
        writer.close()


async def main():
    hosts = ["0.0.0.0", "::"]
    async with await asyncio.start_server(echo, hosts, int(sys.argv[1]), backlog=4096) as server:
        await server.serve_forever()


asyncio.run(main())
