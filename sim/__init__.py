"""Worlds, episodes and measurements on LIBERO. Knows a policy only through `policy.types.ActionPolicy`."""
