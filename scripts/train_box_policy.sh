#!/usr/bin/env bash
# The policy in the box from nothing: record and train side by side, then evaluate. Everything ends in $RUN, the
# checkpoint in $RUN/policy. May be stopped and repeated.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-runs/box}
WORKERS=${WORKERS:-$(nproc)}
MINUTES=${MINUTES:-25} # of training
SUITES=${SUITES:-libero_object libero_spatial}
PYTHON=${PYTHON:-python3}

# shellcheck disable=SC2086  # suites are words
"$PYTHON" scripts/train_with_aggregation.py --training configs/policy/box.yaml --run "$RUN" --minutes "$MINUTES" \
  --suites $SUITES --workers "$WORKERS"
# shellcheck disable=SC2086
"$PYTHON" scripts/eval_episodes.py --checkpoint "$RUN/policy" --suites $SUITES --workers "$WORKERS" \
  --output "$RUN/episodes.jsonl" --summary "$RUN/box-policy.json"
