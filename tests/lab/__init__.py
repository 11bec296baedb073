"""Tests with real sockets between network namespaces."""
