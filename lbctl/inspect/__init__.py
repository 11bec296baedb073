"""Typed readings of a running instance, for the command line and for tests. Writes nothing."""
