"""`lbctl ui`: one page about this node, in a browser."""
