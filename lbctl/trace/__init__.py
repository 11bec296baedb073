"""Asking the data path where a packet would go: real programs, real maps, one crafted packet."""
