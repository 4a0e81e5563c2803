"""The `occ` command line: one module a flow."""
