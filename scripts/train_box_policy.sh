#!/usr/bin/env bash
# The policy in the box from nothing: record and train side by side, then evaluate. Everything ends in $RUN, the
# checkpoint in $RUN/policy. May be stopped and repeated. Further arguments go to train_with_aggregation.py; with four
# GPUs, of which two train, one draws and one lets the policy drive, as the box's own was made:
#
#     WORKERS=60 scripts/train_box_policy.sh --gpus 2 --render-devices 2 --driver-devices cuda:3 \
#         --mesh-cells 0 0.003 0.003 0.003 --training-options learning_rate=0.0006 warmup_steps=100 capacity=480000
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-runs/box}
WORKERS=${WORKERS:-$(nproc)}
MINUTES=${MINUTES:-45} # of training
SUITES=${SUITES:-libero_spatial libero_object libero_goal libero_10}
PYTHON=${PYTHON:-python3}

# shellcheck disable=SC2086  # suites are words
"$PYTHON" scripts/train_with_aggregation.py --training configs/policy/box.yaml --run "$RUN" --minutes "$MINUTES" \
  --suites $SUITES --workers "$WORKERS" --expert-share 0.25 --stride 3 --emphasis 5 "$@"
# shellcheck disable=SC2086
"$PYTHON" scripts/eval_episodes.py --checkpoint "$RUN/policy" --suites $SUITES --workers "$WORKERS" \
  --output "$RUN/episodes.jsonl" --summary "$RUN/box-policy.json"
