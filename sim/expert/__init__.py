"""A scripted expert for LIBERO that reads the simulator's state: a source of demonstrations, not a policy to report."""

from sim.expert.expert import Expert, ExpertPolicy, make_expert

__all__ = ["Expert", "ExpertPolicy", "make_expert"]
