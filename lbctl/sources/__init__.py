"""Where objects come from: files, or a Kubernetes API. Both fill a `Store` and look alike.

A source is a `Source` (see `model/updates.py`): start it, wait for updates, stop it. Nothing else
of it may be used from another thread.
"""
