#!/usr/bin/env bash
# The policy in the box from nothing: scripted demonstrations, training, two rounds of dataset aggregation.
# About 19 minutes on one H200 with 16 cores; everything ends in $RUN, the checkpoint in $RUN/policy.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-runs/box}
WORKERS=${WORKERS:-16}
MINUTES=${MINUTES:-16}             # of training; it begins with the first 150 episodes
EXPERT_SECONDS=${EXPERT_SECONDS:-330}
ROUND_SECONDS=${ROUND_SECONDS:-170}
ROUNDS=${ROUNDS:-2}
ENDPOINT=tcp://127.0.0.1:5599
PYTHON=${PYTHON:-python3}
mkdir -p "$RUN"

# libero_spatial is the harder suite and gets two thirds of the simulators
collect() {
  local few=$((WORKERS / 3 > 0 ? WORKERS / 3 : 1))
  "$PYTHON" scripts/collect_demos.py --suites libero_object --workers "$few" "$@" &
  local object=$!
  "$PYTHON" scripts/collect_demos.py --suites libero_spatial --workers $((WORKERS - few > 0 ? WORKERS - few : 1)) "$@"
  wait "$object"
}

# training watches both folders and takes in episodes as they come
"$PYTHON" scripts/train_policy.py --config configs/policy/box.yaml --output "$RUN" --minutes "$MINUTES" \
  --demonstrations "[$RUN/expert,$RUN/aggregated]" >"$RUN/train.log" 2>&1 &
training=$!
trap 'kill $training 2>/dev/null || true' EXIT

collect --output "$RUN/expert" --episodes 200 --time-limit "$EXPERT_SECONDS" >"$RUN/expert.log" 2>&1

for round in $(seq 1 "$ROUNDS"); do
  until [ -f "$RUN/policy/config.json" ]; do sleep 1; done
  cp -rT "$RUN/policy" "$RUN/driver-$round"
  "$PYTHON" scripts/serve_policy.py --checkpoint "$RUN/driver-$round" --bind $ENDPOINT >"$RUN/server-$round.log" 2>&1 &
  server=$!
  collect --output "$RUN/aggregated" --driver-endpoint $ENDPOINT --first-seed $((10000 * round)) --episodes 200 \
    --noise 0.15 --noisy-fraction 0.5 --time-limit "$ROUND_SECONDS" >"$RUN/round-$round.log" 2>&1
  kill $server
  wait $server || true
done

trap - EXIT
wait $training
tail -n 3 "$RUN/train.log"
