"""Worlds, episodes and measurements on the LIBERO benchmark. Knows a policy only through `policy.types.ActionPolicy`."""
