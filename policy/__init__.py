"""From an observation to an action. Knows nothing of sockets or simulators."""
