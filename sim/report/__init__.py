"""From records of episodes to one page with figures and tables."""
