"""Moves observations and actions between processes over ZeroMQ. Knows nothing of networks' insides or simulators."""
