"""Tests that measure; they assert counts and ratios only."""
