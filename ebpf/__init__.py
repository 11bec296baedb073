"""Everything that talks to the kernel: compiling, loading, maps, attaching. For whoever needs it."""
