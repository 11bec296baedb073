"""The control plane and the command line. Knows Kubernetes, and nothing of compilers."""
