"""`kubectl lbctl`: a plugin for wherever kubectl is, so of the standard library alone."""
