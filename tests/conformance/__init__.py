"""The rules of Kubernetes services as vectors."""
