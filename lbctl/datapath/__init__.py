"""Python's view of bpf_src: its numbers, records and tables."""
