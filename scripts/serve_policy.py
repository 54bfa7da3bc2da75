#!/usr/bin/env python3
"""Serve an OpenVLA policy to robots and simulators over ZeroMQ.

scripts/serve_policy.py                                   # the policy in the box
scripts/serve_policy.py --checkpoint openvla/openvla-7b-finetuned-libero-object
scripts/serve_policy.py --fake                            # no model, for trying a client
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from bridge.endpoint import DEFAULT_ENDPOINT
from bridge.server import PolicyServer
from bridge.worker import ReportState, ServedPolicy
from policy.types import PolicySpec

# Relative, since clients and results name the policy by what was given here.
BOX_POLICY = os.path.relpath(Path(__file__).resolve().parent.parent / "policy" / "pretrained" / "libero")


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_argument("--checkpoint", type=str, default=BOX_POLICY, help="directory or hub id")
    parser.add_argument(
        "--unnorm-key", type=str | None, default=None, help="dataset whose statistics scale the actions"
    )
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32 or bfloat16")
    parser.add_argument(
        "--gpu-memory-gb", type=float | None, default=None, help="most to take, where others share the GPU"
    )
    parser.add_argument("--image-path", type=str, default="auto", help="auto, libero or processor")
    parser.add_argument("--decoding", type=str, default="exact", help="a YAML file, or a name in configs/decoding")
    parser.add_argument("--capture", type=bool, default=True, help="replay forward passes as CUDA graphs")
    parser.add_argument(
        "--acceleration", type=str, default="auto", help="auto, none, joined, compiled, skinny, int8 or fp8"
    )
    parser.add_argument("--bind", type=str, default=DEFAULT_ENDPOINT, help="where to listen")
    parser.add_argument("--max-batch", type=int, default=32, help="most clients answered in one forward pass")
    parser.add_argument("--follow", type=float, default=0.0, help="take over newer weights, looking every so many s")
    parser.add_argument("--follow-share", type=float, default=1.0, help="of the time, in which it decides meanwhile")
    parser.add_argument("--insecure-bind", action="store_true", help="listen to other machines without keys")
    parser.add_argument("--fake", action="store_true", help="serve a policy without a model")
    return parser


def load_policy(arguments: Namespace, report: ReportState) -> ServedPolicy:
    if arguments.fake:
        from policy.fake import FakePolicy

        return FakePolicy()
    from policy.acceleration.plan import fastest, preset  # imports torch; the server's state can be asked meanwhile
    from policy.decoding.config import DecodingConfig
    from policy.hardware import choose_device, limit_memory
    from policy.runtime import Policy

    if arguments.gpu_memory_gb is not None:
        limit_memory(choose_device(arguments.device), arguments.gpu_memory_gb)
    acceleration = arguments.acceleration
    if acceleration == "auto":  # weights that are replaced must stay as they are
        acceleration = "none" if arguments.follow else fastest(choose_device(arguments.device))
    if arguments.follow and preset(acceleration).joined:
        raise ValueError(
            f"--follow {arguments.follow:g} replaces weights, and --acceleration {acceleration} joins them; leave "
            "out one of the two"
        )
    policy = Policy.load(
        arguments.checkpoint,
        unnorm_key=arguments.unnorm_key,
        device=arguments.device,
        dtype=arguments.dtype,
        image_path=arguments.image_path,
        decoding=DecodingConfig.load(arguments.decoding),
        capture=arguments.capture,
        acceleration=preset(acceleration),
        on_state=report,
    )
    if not arguments.follow:
        return policy
    from policy.following import FollowingPolicy

    checkpoint = Path(arguments.checkpoint).expanduser()
    return FollowingPolicy(policy, checkpoint, arguments.follow, arguments.follow_share)


def main() -> int:
    arguments = make_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        server = PolicyServer(
            lambda report: load_policy(arguments, report),
            arguments.bind,
            max_batch=arguments.max_batch,
            insecure_bind=arguments.insecure_bind,
        ).start()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2

    def announce(spec: PolicySpec) -> None:
        weights = f"sha256 {spec.checkpoint_hash[:12]}" if spec.checkpoint_hash else "no weights"
        name = f"{spec.policy_id} ({weights}, actions of {spec.unnorm_key or 'no dataset'})"
        running = f"on {spec.device} in {spec.dtype}, {spec.decoder} decoding"
        print(f"ready: {name} {running}, at {server.endpoint}", flush=True)

    try:
        server.serve_forever(on_ready=announce)
    except Exception as error:  # its traceback is in the log above
        print(f"the policy cannot be served: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
