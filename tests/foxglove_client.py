"""A WebSocket client of a page (RFC 6455) that speaks Foxglove's protocol, to see what a viewer sees."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTOCOL = "foxglove.sdk.v1"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MESSAGE_DATA = 1  # first byte of a binary message: then u32 subscription, u64 log time, the message


class FoxgloveClient:
    """Subscribes to all topics as they are advertised."""

    def __init__(self, port: int, timeout_s: float = 20.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n".encode()
        )
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self._socket.recv(4096)
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        assert b" 101 " in head.splitlines()[0] and PROTOCOL.encode() in head, head
        self.server = ""
        self.channels: dict[int, dict] = {}
        self.sessions: list[str] = []

    def next(self) -> tuple[str, int, object] | None:
        """(topic, log time, decoded message) of the next data message; None when the server has closed."""
        while True:
            kind, payload = self._frame()
            if kind == CLOSE:
                return None
            if kind == PING:
                self._send(PONG, payload)
            elif kind == TEXT:
                self._control(json.loads(payload))
            elif kind == BINARY and payload[0] == MESSAGE_DATA:
                subscription, log_ns = struct.unpack_from("<IQ", payload, 1)
                channel = self.channels[subscription]  # each channel is subscribed to by its own number
                return channel["topic"], log_ns, channel["decode"](payload[13:])

    def _control(self, message: dict) -> None:
        if message["op"] == "serverInfo":
            self.server = message["name"]
            self.sessions.append(message.get("sessionId", ""))
        if message["op"] == "advertise":
            for channel in message["channels"]:
                self.channels[channel["id"]] = {**channel, "decode": _decoder(channel)}
            wanted = [{"id": channel["id"], "channelId": channel["id"]} for channel in message["channels"]]
            self._send(TEXT, json.dumps({"op": "subscribe", "subscriptions": wanted}).encode())

    def _frame(self) -> tuple[int, bytes]:
        first, second = self._read(2)
        size = second & 127
        if size == 126:
            size = struct.unpack(">H", self._read(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", self._read(8))[0]
        assert first & 128, "fragmented"
        return first & 15, self._read(size)

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._socket.recv(1 << 20)
            if not data:
                return bytes([128 | CLOSE, 0])
            self._buffer += data
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def _send(self, kind: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = (
            bytes([128 | len(payload)]) if len(payload) < 126 else bytes([128 | 126]) + struct.pack(">H", len(payload))
        )
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([128 | kind]) + size + mask + masked)

    def close(self) -> None:
        self._socket.close()


def _decoder(channel: dict):
    assert channel["encoding"] == "protobuf", channel
    files = descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(channel["schema"] + "=="))
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(channel["schemaName"])).FromString
