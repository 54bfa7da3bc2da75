"""A policy behind a ZeroMQ socket.

The I/O thread owns the socket and all bookkeeping and never waits for the policy, so status is answered while the GPU
is busy; `bridge.worker` owns the policy. They exchange batches of jobs and outcomes, one batch at a time.
"""

from __future__ import annotations

import logging
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

import msgspec
import zmq

from bridge.dispatcher import Answer, Dispatcher
from bridge.endpoint import DEFAULT_ENDPOINT, SocketSecurity, check_bind, prepare_socket
from bridge.jobs import Outcome
from bridge.messages import Counters, Limits, ServerState
from bridge.worker import PolicyLoader, PolicyWorker, ServedPolicy
from policy.types import PolicySpec

log = logging.getLogger(__name__)

HOUSEKEEPING_MS = 250
LAST_REPLIES_LINGER_MS = 500
# A client that floods the server must not keep the I/O thread from handing out work.
MAX_MESSAGES_A_TURN = 1024
# After the policy has failed the server stays this long to tell waiting clients why.
FAILURE_NOTICE_S = 2.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class PolicyServer:
    """Serves one policy to many clients.

    policy: a policy, or a function that loads one on the worker thread while the server already tells its state.
    endpoint: where to listen; `tcp://127.0.0.1:*` takes a free port. Addresses that other machines can reach need
        `security` or `insecure_bind=True`.
    max_batch, max_sessions, max_message_bytes, session_idle_s, evict_after_s: see `bridge.messages.Limits`.
    drain_s: how long `close` waits for work that was accepted already.

    Raises:
        ValueError: an endpoint or limit that cannot be.
    """

    def __init__(
        self,
        policy: ServedPolicy | PolicyLoader,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        max_batch: int = 32,
        max_sessions: int = 256,
        max_message_bytes: int = 16 * 2**20,
        session_idle_s: float = 900.0,
        evict_after_s: float = 30.0,
        drain_s: float = 5.0,
        security: SocketSecurity | None = None,
        insecure_bind: bool = False,
    ) -> None:
        check_bind(endpoint, security, insecure_bind)
        self.endpoint = endpoint
        self.limits = Limits(max_message_bytes, max_sessions, max_batch, session_idle_s, evict_after_s)
        self._drain_s = drain_s
        self._security = security
        load = (lambda _: policy) if isinstance(policy, ServedPolicy) else policy
        self._worker = PolicyWorker(load, self._worker_changed)
        self._dispatcher = Dispatcher(self.limits, self._worker, time.monotonic())
        self._io_thread = threading.Thread(target=self._serve, name="policy-server", daemon=True)
        self._io_failure: Exception | None = None
        self._outcomes: queue.SimpleQueue[Sequence[Outcome]] = queue.SimpleQueue()
        self._wake_sender, self._wake_receiver = socket.socketpair()
        self._wake_sender.setblocking(False)
        self._closing = threading.Event()
        self._loaded = threading.Event()

    def start(self) -> Self:
        """Binds, starts loading and returns. `endpoint` tells the port where it was left open.

        Raises:
            OSError: the address is taken or is not this machine's.
        """
        self._socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.ROUTER)
        prepare_socket(self._socket, LAST_REPLIES_LINGER_MS, self._security)
        # Per frame; a peer beyond it is cut off. Leaves room to answer those only slightly too large in words.
        self._socket.setsockopt(zmq.MAXMSGSIZE, 4 * self.limits.max_message_bytes)
        try:
            self._socket.bind(self.endpoint)
        except zmq.ZMQError as error:
            self._socket.close(0)
            hint = "choose an address of this machine"
            if error.errno == zmq.EADDRINUSE:
                hint = "another server is there; stop it or choose another port"
            raise OSError(error.errno, f"cannot listen on {self.endpoint}: {error.strerror} ({hint})") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._io_thread.start()
        self._worker.start()
        return self

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Returns once the policy is loaded. Raises what the loader raised, or `TimeoutError`."""
        if not self._loaded.wait(timeout_s):
            raise TimeoutError(f"the policy is still {self._worker.state} after {timeout_s} s")
        if self._worker.failure is not None:
            raise self._worker.failure

    def serve_forever(self, on_ready: Callable[[PolicySpec], None] | None = None) -> None:
        """Serves until SIGINT, SIGTERM or `close`; call it after `start`, on the main thread.

        on_ready: called once, when the policy is loaded. Raises what the loader raised, or what ended the policy's
            thread later, so that whoever watches over the process starts another.
        """
        # Only a flag is set in the handler: an Event's lock may be held by the very thread that the signal interrupts.
        signals: list[int] = []
        previous = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in STOP_SIGNALS}
        try:
            while not signals and not self._closing.wait(HOUSEKEEPING_MS / 1e3):
                if self._worker.failure is not None:
                    self._closing.wait(FAILURE_NOTICE_S)
                    raise self._worker.failure
                if on_ready is not None and self._worker.spec is not None:
                    on_ready(self._worker.spec)
                    on_ready = None
        finally:
            self.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._io_failure is not None:
            raise self._io_failure

    def close(self) -> None:
        """Refuses new requests, answers those accepted already (for up to `drain_s`), closes the policy."""
        self._closing.set()
        self._wake()
        if self._io_thread.ident is not None:
            self._io_thread.join()
            self._worker.stop()
            self._worker.join(self._drain_s)
            if self._worker.is_alive():
                log.warning("the policy is still %s after %.1f s; it is left behind", self._worker.state, self._drain_s)
        self._wake_sender.close()
        self._wake_receiver.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> ServerState:
        return self._dispatcher.state

    @property
    def counters(self) -> Counters:
        """A copy of what was counted so far."""
        return msgspec.structs.replace(self._dispatcher.counters)

    def _worker_changed(self, outcomes: Sequence[Outcome]) -> None:
        """Runs on the worker's thread."""
        if outcomes:
            self._outcomes.put(outcomes)
        elif self._worker.spec is not None or self._worker.failure is not None:
            self._loaded.set()
        self._wake()

    def _wake(self) -> None:
        # A full pipe wakes as well as one byte more would; a closed one has nobody to wake.
        with suppress(OSError):
            self._wake_sender.send(b"\0")

    # From here on everything runs on the I/O thread.

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_receiver, zmq.POLLIN)
        give_up_at = float("inf")
        try:
            while not (self._dispatcher.closing and (self._dispatcher.is_drained or time.monotonic() > give_up_at)):
                if self._wake_receiver.fileno() in dict(poller.poll(HOUSEKEEPING_MS)):
                    self._wake_receiver.recv(4096)
                if self._closing.is_set() and not self._dispatcher.closing:
                    self._dispatcher.closing = True
                    give_up_at = time.monotonic() + self._drain_s
                self._take_turn()
        except Exception as error:
            log.exception("the server's I/O thread failed")
            self._io_failure = error
            self._closing.set()
        finally:
            self._socket.close()

    def _take_turn(self) -> None:
        """All that has arrived first, so that a batch is as large and its observations as new as can be."""
        for _ in range(MAX_MESSAGES_A_TURN):
            try:
                address, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._send(self._dispatcher.receive(address.bytes, [frame.buffer for frame in frames], time.monotonic()))
        worker_failed = self._worker.failure is not None  # asked first: its last outcomes came before that
        while not self._outcomes.empty():
            self._send(self._dispatcher.finish(self._outcomes.get()))
        if worker_failed:
            self._send(self._dispatcher.give_up())
            return
        batch = self._dispatcher.next_batch(time.monotonic())
        if batch:
            self._worker.give(batch)

    def _send(self, answers: list[Answer]) -> None:
        for answer in answers:
            self._socket.send_multipart(answer)  # a ROUTER drops what is meant for someone who has left
