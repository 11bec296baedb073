"""Everything that talks to the kernel: compiling, loading, maps, attaching. Knows nothing of who uses it."""
