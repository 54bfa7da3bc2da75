"""From an observation to an action. Knows nothing of sockets or simulators."""

import os

# Has to be set before torch is loaded. By default its threads spin while they wait for one another, which is fine on
# an idle machine, but where simulators or other policies share the cores it makes an action take seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
