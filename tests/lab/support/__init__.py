"""What lab tests share: sockets and rules inside namespaces, and stand-ins."""
