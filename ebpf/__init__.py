"""Everything that talks to the kernel: compiling, loading, maps, attaching. Knows no Kubernetes."""
