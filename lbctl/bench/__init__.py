"""What a connection, a packet and a change cost, beside what others cost on the same machine."""
