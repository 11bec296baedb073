"""All that talks to the kernel: compiling, loading, maps, attaching. Knows no one that uses it."""
