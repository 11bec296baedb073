# lbctl on Debian slim. The programs are in it, compiled by bcc; no other compiler and no kernel headers
# are. `./dev image` tries these steps in a bare root file system.

FROM debian:bookworm-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY bpf_src bpf_src
COPY ebpf ebpf
COPY lbctl lbctl
COPY examples examples
RUN /usr/bin/python3 -m venv --system-site-packages /opt/lbctl \
 && /opt/lbctl/bin/python -m pip install --no-cache-dir . \
 && /opt/lbctl/bin/python -m pip uninstall -y pip setuptools

FROM debian:bookworm-slim
# linux-libc-dev holds the UAPI headers; nft and iptables tell whether kube-proxy's rules are there.
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
    python3 python3-bpfcc linux-libc-dev libbpf1 iproute2 iptables nftables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/lbctl /opt/lbctl
# In this stage, since programs are believed only beside the bcc and LLVM that would make them again.
RUN LBCTL_CACHE_DIR=/tmp/compiled /opt/lbctl/bin/python -m ebpf.compile && rm -r /tmp/compiled
ENV PATH=/opt/lbctl/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["lbctl"]
CMD ["agent"]
