"""Keeps the maps equal to what is wanted, now and between changes."""
