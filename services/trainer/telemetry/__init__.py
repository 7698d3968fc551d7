"""What a run says of itself: the terminal, a file of metrics, and Prometheus."""
