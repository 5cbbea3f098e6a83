"""The Kubernetes operator: decides in plan, acts in cluster, listens in control."""
