"""The process on each node: waits for events, applies what changed, says how it is doing."""
