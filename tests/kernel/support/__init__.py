"""What kernel tests share: a node without interfaces, packets, and an oracle."""
