"""Tests that load programs and run packets through them."""
