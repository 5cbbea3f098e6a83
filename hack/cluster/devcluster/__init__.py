"""A real Kubernetes with KServe for tests and for trying things out, built from pinned Go modules."""
