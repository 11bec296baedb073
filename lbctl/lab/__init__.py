"""A cluster made of network namespaces, to try, test and show `lbctl` on one machine.

Nothing is imported here: the traffic tools start inside the namespaces and must start fast.
Begin with `lbctl.lab.cluster.Lab`.
"""
