"""Servers and clients that run inside a lab's namespaces: `python -m lbctl.lab.traffic --help`.

Standard library only, and little of it, since hundreds of them may be started in one test.
"""
