"""What deploys the service: Compose, Kubernetes, and what checks them."""
