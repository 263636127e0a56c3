#!/usr/bin/env python3
"""Makes a server look far away: passes connections on, and what the client sends so much later. Bandwidth is not bounded.

    delay_proxy.py HOST:PORT DELAY_MS       prints the port that it listens on, on 127.0.0.1
"""

import asyncio
import sys

CHUNK = 256 << 10


async def pump(reader, writer, delay):
    """Copies until the end; what was read goes on `delay` seconds later, and more is read meanwhile."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue()

    async def send():
        while (item := await queue.get()) is not None:
            due, data = item
            await asyncio.sleep(max(0, due - loop.time()))
            writer.write(data)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        while data := await reader.read(CHUNK):
            queue.put_nowait((loop.time() + delay, data))
    except ConnectionError:
        pass
    queue.put_nowait(None)
    try:
        await sending
        writer.close()
    except ConnectionError:
        pass


async def main():
    host, port = sys.argv[1].rsplit(":", 1)
    delay = float(sys.argv[2]) / 1000

    async def serve(reader, writer):
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, server_writer, delay), pump(server_reader, writer, 0))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
