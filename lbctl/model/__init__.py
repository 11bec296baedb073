"""What Kubernetes says, as typed, frozen records of the fields we use."""
