"""From an observation to an action. Knows nothing of sockets or simulators."""

import os

# Has to be set before torch is loaded. Its threads spin while they wait for one another, by default for so long that
# an action takes seconds where simulators or other policies share the cores; without spinning it takes 1.7 times as
# long on idle ones. So they spin for a short while (docs/log.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
