"""Metrics for Prometheus: what is served at /metrics, by what names, and what it is read from."""
