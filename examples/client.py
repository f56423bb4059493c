"""A client on one loop: asyncio's own API, run by kloop.run instead of asyncio.run.

Start echo_streams.py or echo_protocol.py first.
"""

import argparse
import asyncio
import time

import kloop


async def converse(host: str, port: int, name: str, messages: int) -> int:
    """Echo messages over one connection; the number of bytes that came back."""
    reader, writer = await asyncio.open_connection(host, port)
    echoed = 0
    try:
        for number in range(messages):
            message = f"{name}, message {number}\n".encode()
            writer.write(message)
            await writer.drain()
            reply = await reader.readexactly(len(message))
            if reply != message:
                raise ValueError(f"sent {message!r}, got {reply!r}")
            echoed += len(reply)
    finally:
        writer.close()
        await writer.wait_closed()
    return echoed


async def main(host: str, port: int, connections: int, messages: int) -> None:
    """Hold several conversations at once; if one fails, the others are cancelled."""
    start = time.perf_counter()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(converse(host, port, f"connection {index}", messages))
            for index in range(connections)
        ]
    echoed = sum(task.result() for task in tasks)
    seconds = time.perf_counter() - start
    print(
        f"{connections} connections, {connections * messages} messages, {echoed} bytes echoed "
        f"in {seconds:.3f} s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="drive the echo examples")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--messages", type=int, default=100)
    options = parser.parse_args()
    kloop.run(main(options.host, options.port, options.connections, options.messages))
