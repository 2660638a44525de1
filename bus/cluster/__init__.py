"""The only door to Kubernetes: calls, watches, typed errors. kr8s loads configuration and carries requests."""
