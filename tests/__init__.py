"""Tests, by what they need: nothing, a kernel, or a lab of namespaces."""
