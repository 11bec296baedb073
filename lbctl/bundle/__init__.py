"""A support bundle: what helps others to understand a node, without secrets."""
