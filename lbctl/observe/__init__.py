"""The stream of new flows, ends of flows, refusals and drops: who reads it, and how it is told."""
