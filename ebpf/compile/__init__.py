"""From bpf_src to instructions: sources joined, compiled in a child, the result kept."""
