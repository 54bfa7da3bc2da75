#!/usr/bin/env python3
"""The whole loop on this machine: a policy server and a LIBERO client, two processes joined by ZeroMQ.

Starts `scripts/serve_policy.py` with the policy in the box, drives `scripts/eval_episodes.py` against it on two
benchmark tasks from camera frames alone, and names the videos and the result file it wrote.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = os.path.relpath(ROOT / "policy" / "pretrained" / "libero")  # results name the policy by this path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ended_with_this_block() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes put into the list do not outlive the block, also when this process is told to terminate."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    children: list[subprocess.Popen[bytes]] = []
    try:
        yield children
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; the children are given time to end
        for child in children:
            child.terminate()
        for child in children:
            child.wait(timeout=20)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="directory or hub id (default: the policy in the box)")
    parser.add_argument("--decoding", default="exact", help="a YAML file, or a name in configs/decoding")
    parser.add_argument("--suites", nargs="+", default=["libero_object", "libero_spatial"])
    parser.add_argument("--tasks", default="0", help="task numbers of each suite, e.g. 0,3-5")
    parser.add_argument("--initial-states", default="0-2", help="official initial states of each task")
    parser.add_argument("--output", type=Path, default=None, help="folder for results and videos")
    return parser


def main() -> int:
    arguments = make_parser().parse_args()
    output = arguments.output or ROOT / "runs" / time.strftime("demo-%Y%m%d-%H%M%S")
    output.mkdir(parents=True, exist_ok=True)

    endpoint = f"tcp://127.0.0.1:{free_port()}"
    log = output / "server.log"
    print(f"policy server: {arguments.checkpoint} at {endpoint} (log: {log})", flush=True)
    serve = [sys.executable, str(ROOT / "scripts" / "serve_policy.py"), "--checkpoint", arguments.checkpoint]
    serve += ["--decoding", arguments.decoding]
    evaluate = [sys.executable, str(ROOT / "scripts" / "eval_episodes.py"), "--endpoint", endpoint]
    evaluate += ["--suites", *arguments.suites, "--tasks", arguments.tasks]
    evaluate += ["--initial-states", arguments.initial_states, "--workers", "1"]
    evaluate += ["--output", str(output / "episodes.jsonl"), "--video", str(output / "videos")]
    with log.open("w") as stream, ended_with_this_block() as children:
        server = subprocess.Popen([*serve, "--bind", endpoint], stdout=stream, stderr=subprocess.STDOUT)
        client = subprocess.Popen(evaluate)
        children += [client, server]
        code = client.wait()
        if server.poll() is not None:
            said = log.read_text()[-2000:]
            print(f"the policy server stopped with exit code {server.returncode}:\n{said}", file=sys.stderr)
            return 1
    print(f"\nresults: {output / 'episodes.jsonl'}")
    for video in sorted((output / "videos").glob("*.mp4")):
        print(f"video:   {video}")
    return code


if __name__ == "__main__":
    sys.exit(main())
