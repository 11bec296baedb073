"""Clusters of many services, and agents that serve them."""
