"""Children as plain objects for server-side apply: one module per kind, each a pure function."""
