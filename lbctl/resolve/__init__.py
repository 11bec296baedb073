"""The rules of docs/semantics.md: which endpoints serve which address; pure."""
