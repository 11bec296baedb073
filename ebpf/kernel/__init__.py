"""What the kernel offers, one file per interface: system calls, libbpf, netlink, bpffs, BTF."""
