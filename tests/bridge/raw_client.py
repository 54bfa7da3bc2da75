"""A raw socket that can send anything, and a policy that can be held up."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import zmq

from bridge.codec import pack, unpack_reply
from bridge.messages import Act, Hello, ImageHeader, Reply, Reset, Stamp, Status, Welcome
from policy.fake import FakePolicy
from policy.types import Action, Observation

FREE_PORT = "tcp://127.0.0.1:*"


class GatedPolicy(FakePolicy):
    """Answers only while its gate is open. `started` is set whenever a decision begins; `calls` keeps who was in it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.started = threading.Event()
        self.calls: list[list[str]] = []
        self.was_reset: list[str] = []

    def reset(self, session: str = "") -> None:
        self.was_reset.append(session)
        super().reset(session)

    def act(self, observation: Observation, session: str = "") -> Action:
        return self.act_batch([observation], [session])[0]

    def act_batch(self, observations: list[Observation], sessions: list[str]) -> list[Action]:
        self.calls.append(list(sessions))
        self.started.set()
        assert self.gate.wait(10), "the test never opened the gate"
        return [FakePolicy.act(self, o, s) for o, s in zip(observations, sessions, strict=True)]


def specified(**changes: Any) -> FakePolicy:
    """A policy whose spec differs from the usual one."""
    policy = FakePolicy()
    policy.spec = replace(policy.spec, **changes)
    return policy


class RawClient:
    """A DEALER without manners: sends any frames and returns whatever comes back, in order."""

    def __init__(self, endpoint: str, session: str) -> None:
        self.session = session
        self.sequence = 0
        self.socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def stamp(self, episode: int = 0, **changes: Any) -> Stamp:
        self.sequence += 1
        return Stamp(
            **{"session": self.session, "episode": episode, "sequence": self.sequence, "captured_at": 1.5} | changes
        )

    def send_frames(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive(self, timeout_s: float = 5.0) -> Reply:
        assert self.socket.poll(int(1e3 * timeout_s)), f"nothing received in {timeout_s} s"
        return unpack_reply(self.socket.recv_multipart(), 2**20)

    def is_silent(self, seconds: float = 0.1) -> bool:
        return not self.socket.poll(int(1e3 * seconds))

    def hello(self) -> Welcome:
        self.send_frames(pack(Hello(stamp=self.stamp(), client="raw")))
        welcome = self.receive()
        assert isinstance(welcome, Welcome)
        return welcome

    def reset(self, episode: int) -> Reply:
        self.send_frames(pack(Reset(stamp=self.stamp(episode))))
        return self.receive()

    def status(self) -> Reply:
        self.send_frames(pack(Status(stamp=self.stamp())))
        return self.receive()

    def send_act(self, episode: int = 0, side: int = 16) -> Stamp:
        stamp = self.stamp(episode)
        self.send_frames(*act_frames(stamp, side))
        return stamp

    def close(self) -> None:
        self.socket.close()


def act_frames(stamp: Stamp, side: int = 16, instruction: str = "pick up the milk") -> tuple[bytes, bytes]:
    header = ImageHeader("raw", (side, side, 3), side * side * 3)
    return pack(Act(stamp=stamp, instruction=instruction, image=header)), bytes(side * side * 3)


def claiming(jpeg: bytes, side: int) -> bytes:
    """The same stream, its own frame header saying that it is side x side pixels."""
    size_at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:size_at] + 2 * side.to_bytes(2, "big") + jpeg[size_at + 4 :]


def observe(level: int = 128, side: int = 32) -> Observation:
    return Observation(np.full((side, side, 3), level, np.uint8), "pick up the milk", captured_at=1.5)
