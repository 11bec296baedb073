"""HTTP servers that say how this node is doing: /healthz, /livez, and health-check node ports."""
