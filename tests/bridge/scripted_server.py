"""A server that answers as a test says, and replies for it to give."""

import threading

import zmq
from raw_client import FREE_PORT

from bridge.codec import pack, unpack_request
from bridge.messages import (
    ActionReply,
    Hello,
    Limits,
    ServerState,
    ServerTiming,
    Welcome,
)
from policy.types import DecodeTrace, PolicySpec


class ScriptedServer(threading.Thread):
    """Answers each request with what `script(request)` returns, which may be late, foreign or nothing."""

    def __init__(self, script) -> None:
        super().__init__(daemon=True)
        self.script = script
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(FREE_PORT)
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.stopping = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.stopping.is_set():
            if self.socket.poll(20):
                address, *frames = self.socket.recv_multipart()
                for reply in self.script(unpack_request(frames, 2**24)[0]):
                    self.socket.send_multipart([address, pack(reply)])
        self.socket.close()


def welcome(hello: Hello, **changes) -> Welcome:
    fields = {"instance": "i", "state": ServerState.READY, "limits": Limits(), "spec": PolicySpec("p")}
    return Welcome(stamp=hello.stamp, **fields | changes)


def action(stamp, first_value: float) -> ActionReply:
    timing = ServerTiming(0, 0, 0, 0, 1)
    return ActionReply(stamp=stamp, values=(first_value,) + (0.0,) * 6, tokens=(), trace=DecodeTrace(0), timing=timing)
